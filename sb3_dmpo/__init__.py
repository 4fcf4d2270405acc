"""Offline reinforcement learning in the style of Stable-Baselines3."""

import io
from pathlib import Path
from typing import Any

import sb3_dmpo.envs  # noqa: F401  (registers the environments)
from sb3_dmpo.awac import AWAC, MixAWAC
from sb3_dmpo.bc import BC
from sb3_dmpo.common.model_zip import find_algorithm, read_file
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.cql import CQL
from sb3_dmpo.decision_transformer import DecisionTransformer
from sb3_dmpo.diffusion_ql import DiffusionQL
from sb3_dmpo.dmpo import DMPO, InfoDMPO, OneStepDMPO
from sb3_dmpo.files.plain_text import named_faults
from sb3_dmpo.files.safe_zip import DamagedFileError, read_model
from sb3_dmpo.iql import IQL
from sb3_dmpo.lapo import LAPO, LPAWAC
from sb3_dmpo.maple import MAPLE
from sb3_dmpo.td3_bc import TD3BC, ReBRAC

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

#: Algorithms by the name that the command line uses.
ALGOS: dict[str, type[OfflineAlgorithm]] = {
    "dmpo": DMPO,
    "infodmpo": InfoDMPO,
    "one_step_dmpo": OneStepDMPO,
    "bc": BC,
    "td3_bc": TD3BC,
    "rebrac": ReBRAC,
    "awac": AWAC,
    "mix_awac": MixAWAC,
    "lp_awac": LPAWAC,
    "iql": IQL,
    "cql": CQL,
    "lapo": LAPO,
    "diffusion_ql": DiffusionQL,
    "decision_transformer": DecisionTransformer,
    "maple": MAPLE,
}


def load(path: str | Path | io.BufferedIOBase, **kwargs: Any) -> OfflineAlgorithm:
    """
    Load a model of any algorithm, checked as by the ``load`` of its class.

    :param path: path of the zip (``.zip`` is tried if there is no suffix) or a file object
    :param kwargs: arguments of :meth:`OfflineAlgorithm.load`, e.g. ``env``, ``device`` or ``dataset``
    :raises ValueError: the path is empty, or as ``load`` of the class
    :raises DamagedFileError: the file is not complete, or of no algorithm of this package
    :raises UnsafeFileError: the file asks for something that a model does not need
    """
    content = read_file(path)
    with named_faults(path):
        name = find_algorithm(read_model(content), ALGOS)
        if name is None:
            raise DamagedFileError("This is of no algorithm of this package; a class of your own has a `load` too.")
    return ALGOS[name].load(io.BytesIO(content) if hasattr(path, "read") else path, **kwargs)


__all__ = [
    "ALGOS",
    "AWAC",
    "BC",
    "CQL",
    "DMPO",
    "IQL",
    "LAPO",
    "LPAWAC",
    "MAPLE",
    "TD3BC",
    "DecisionTransformer",
    "DiffusionQL",
    "InfoDMPO",
    "MixAWAC",
    "OfflineAlgorithm",
    "OneStepDMPO",
    "ReBRAC",
    "__version__",
    "load",
]
