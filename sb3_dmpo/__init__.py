"""Offline reinforcement learning in the style of Stable-Baselines3."""

from pathlib import Path

import sb3_dmpo.envs  # noqa: F401  (registers the environments)
from sb3_dmpo.awac import AWAC, MixAWAC
from sb3_dmpo.bc import BC
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.cql import CQL
from sb3_dmpo.decision_transformer import DecisionTransformer
from sb3_dmpo.diffusion_ql import DiffusionQL
from sb3_dmpo.dmpo import DMPO, InfoDMPO
from sb3_dmpo.iql import IQL
from sb3_dmpo.lapo import LAPO, LPAWAC
from sb3_dmpo.td3_bc import TD3BC

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

#: Algorithms by the name that the command line uses.
ALGOS: dict[str, type[OfflineAlgorithm]] = {
    "dmpo": DMPO,
    "infodmpo": InfoDMPO,
    "bc": BC,
    "td3_bc": TD3BC,
    "awac": AWAC,
    "mix_awac": MixAWAC,
    "lp_awac": LPAWAC,
    "iql": IQL,
    "cql": CQL,
    "lapo": LAPO,
    "diffusion_ql": DiffusionQL,
    "decision_transformer": DecisionTransformer,
}

__all__ = [
    "ALGOS",
    "AWAC",
    "BC",
    "CQL",
    "DMPO",
    "IQL",
    "LAPO",
    "LPAWAC",
    "TD3BC",
    "DecisionTransformer",
    "DiffusionQL",
    "InfoDMPO",
    "MixAWAC",
    "OfflineAlgorithm",
    "__version__",
]
