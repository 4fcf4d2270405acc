"""Every task of tables 3 to 6 has the settings of the paper (its tables 10 to 14 and appendix F), algorithm by algorithm."""

from typing import Any

import pytest

from sb3_dmpo.cli.configs import config_path, find_entry, parse_values

QUALITIES = ("expert", "medium-expert", "medium-replay", "medium", "random")
#: Minari has no port of D4RL's MuJoCo-v2: its files, and what becomes of them by ``convert``.
MUJOCO = [
    name
    for env in ("halfcheetah", "hopper", "walker2d")
    for quality in QUALITIES
    for name in (f"{env}-{quality}-v2.hdf5", f"my/{env}/{quality}-v0")
]
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
ANTMAZE = [f"D4RL/antmaze/{maze}-v1" for maze in MAZES]
HUMAN, CLONED = ([f"D4RL/{task}/{kind}-v2" for task in ("pen", "hammer", "door", "relocate")] for kind in ("human", "cloned"))

TWO, THREE = {"net_arch": [256, 256]}, {"net_arch": [256, 256, 256]}
#: What the re-implemented methods share: learning rate, batch, discount, soft update, delay, layers.
COMMON = {
    "learning_rate": 3e-4,
    "batch_size": 256,
    "gamma": 0.99,
    "tau": 0.005,
    "policy_delay": 2,
    "policy_kwargs": TWO,
}
MIXTURE = {"n_components": 8, "gumbel_temperature": 0.67, "kl_coef": 1.0}
SMOOTHED = {"target_policy_noise": 0.2, "target_noise_clip": 0.5}
#: ReBRAC, of its own paper; the coefficients are those of every dataset.
REBRAC = {"gamma": 0.99, "tau": 0.005, "policy_delay": 2, "policy_kwargs": THREE | {"critic_layer_norm": True}, **SMOOTHED}
ANT_VARIANT = {
    **COMMON,
    **MIXTURE,
    "learning_rate": 2e-4,
    "policy_kwargs": THREE,
    "advantage_scale": 5.0,
    "value_targets": True,
    "min_q_weight": 0.7,
    "reward_scale": 100.0,
    "value_bounds": [0, 100],
}
IQL = {"learning_rate": 3e-4, "batch_size": 256, "gamma": 0.99, "tau": 0.005, "policy_kwargs": TWO, "variant": "original"}
CQL = {
    **{"learning_rate": 3e-4, "actor_learning_rate": 3e-5, "batch_size": 256, "tau": 0.005, "policy_kwargs": THREE},
    **{"conservative_weight": 10.0, "pretraining_updates": 40_000, "normalize_observations": False},
}
LAPO = {
    "learning_rate": 2e-4,
    "batch_size": 512,
    "policy_kwargs": THREE,
    "expectile": 0.9,
    "latent_bound": 2.0,
    "kl_coef": 1.0,
}
DIFFUSION = {"critic_learning_rate": 3e-4, "batch_size": 256, "n_diffusion_steps": 5, "policy_kwargs": THREE}
MINUS_ONE = {"reward_shift": -1.0}

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dmpo": {
        "mujoco": {**COMMON, **MIXTURE, **SMOOTHED, "advantage_scale": 10.0},
        "human": {**COMMON, **MIXTURE, **SMOOTHED, "advantage_scale": 5.0},
        "cloned": {**COMMON, **MIXTURE, **SMOOTHED, "advantage_scale": 10.0},
        "antmaze": ANT_VARIANT,
    },
    "infodmpo": {
        "mujoco": {**COMMON, **MIXTURE, **SMOOTHED, "info_learning_rate": 5e-7},
        "human": {**COMMON, **MIXTURE, **SMOOTHED, "info_learning_rate": 3e-6, "advantage_scale": 10.0},
        "cloned": {**COMMON, **MIXTURE, **SMOOTHED, "info_learning_rate": 3e-6, "advantage_scale": 10.0},
        "antmaze": {**ANT_VARIANT, "info_learning_rate": 5e-7},
    },
    # Table 11 has batch size 1024 for AWAC, the published script 256 as for all others.
    "awac": {
        **{key: {**COMMON, "advantage_scale": 10.0} for key in ("mujoco", "human", "cloned")},
        "antmaze": COMMON | MINUS_ONE,
    },
    "mix_awac": {
        **{key: {**COMMON, "advantage_scale": 10.0, "n_components": 8} for key in ("mujoco", "human", "cloned")},
        "antmaze": COMMON | MINUS_ONE,
    },
    "lp_awac": {
        "mujoco": {"learning_rate": 3e-4, "batch_size": 256, "advantage_scale": 10.0, "policy_kwargs": TWO},
        "human": {"learning_rate": 3e-4, "batch_size": 256, "policy_kwargs": TWO},
        "cloned": {"learning_rate": 3e-4, "batch_size": 256, "policy_kwargs": TWO},
        "antmaze": MINUS_ONE,
    },
    "td3_bc": {
        **{key: {**COMMON, **SMOOTHED, "alpha": 2.5} for key in ("mujoco", "human", "cloned")},
        "antmaze": {**COMMON, **SMOOTHED, **MINUS_ONE, "alpha": 2.5},
    },
    "rebrac": {
        "mujoco": {**REBRAC, "learning_rate": 1e-3, "batch_size": 1024},
        "human": {**REBRAC, "learning_rate": 3e-4, "batch_size": 256},
        "cloned": {**REBRAC, "learning_rate": 3e-4, "batch_size": 256},
        "antmaze": {
            **{**REBRAC, "gamma": 0.999, "reward_scale": 100.0},
            **{"learning_rate": 3e-4, "critic_learning_rate": 5e-5, "batch_size": 256},
        },
    },
    "iql": {
        "mujoco": {**IQL, "expectile": 0.7, "advantage_scale": 3.0, "reward_scale": "return_range"},
        "human": {**IQL, "expectile": 0.7, "advantage_scale": 0.5, "dropout": 0.1},
        "cloned": {**IQL, "expectile": 0.7, "advantage_scale": 0.5, "dropout": 0.1},
        "antmaze": {**IQL, **MINUS_ONE, "expectile": 0.9, "advantage_scale": 10.0},
    },
    "cql": {
        "mujoco": CQL,
        # The same share of the run as elsewhere; 40 000 would be four times the run.
        "human": {**CQL, "pretraining_updates": 400, "importance_sampling": False},
        "cloned": {**CQL, "importance_sampling": False},
        "antmaze": CQL | MINUS_ONE,
    },
    "lapo": {
        "mujoco": {**LAPO, "min_q_weight": 1.0, "reward_scale": "max"},
        "human": {**LAPO, "min_q_weight": 1.0},
        "cloned": {**LAPO, "min_q_weight": 1.0},
        "antmaze": {**LAPO, "min_q_weight": 0.7, "reward_scale": 100.0, "value_bounds": [0, 100]},
    },
    "diffusion_ql": {
        "mujoco": {**DIFFUSION, "learning_rate": 3e-4, "eta": 1.0, "max_q_backup": False},
        "human": {**DIFFUSION, "learning_rate": 3e-5, "eta": 0.15, "reward_scale": "standardize", "max_grad_norm": 7.0},
        "cloned": {**DIFFUSION, "learning_rate": 3e-5, "eta": 0.1, "reward_scale": "standardize", "max_grad_norm": 8.0},
        "antmaze": {**DIFFUSION, "reward_scale": 4.0, "reward_shift": -0.5},
    },
    "bc": {
        family: {"learning_rate": 3e-4, "batch_size": 256, "policy_kwargs": TWO} for family in ("mujoco", "human", "cloned")
    }
    | {"antmaze": {}},
    "decision_transformer": {family: {} for family in ("mujoco", "human", "cloned", "antmaze")},
}
FAMILIES = {"mujoco": MUJOCO, "human": HUMAN, "cloned": CLONED, "antmaze": ANTMAZE}
#: Diffusion QL by maze: learning rate, eta, max_q_backup, bound of the gradient.
DIFFUSION_MAZES = {
    "umaze": (3e-4, 0.5, False, 2.0),
    "umaze-diverse": (3e-4, 2.0, True, 3.0),
    "medium-play": (1e-3, 2.0, True, 2.0),
    "medium-diverse": (3e-4, 3.0, True, 1.0),
    "large-play": (3e-4, 4.5, True, 10.0),
    "large-diverse": (3e-4, 3.5, True, 7.0),
}


def settings(algorithm: str, dataset: str) -> dict[str, Any]:
    return parse_values(find_entry(str(config_path(algorithm)), dataset)[1])


@pytest.mark.parametrize("algorithm", list(SETTINGS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_settings_of_every_task(algorithm: str, family: str) -> None:
    expected = SETTINGS[algorithm][family]
    for dataset in FAMILIES[family]:
        found = settings(algorithm, dataset)
        assert {key: found.get(key) for key in expected} == expected, dataset
        # The protocol: 10 episodes every 5 000 updates (1 000 on the short runs), 100 after the last one on AntMaze.
        assert found.get("eval_episodes", 10) == 10, dataset
        assert found.get("final_eval_episodes") == (100 if family == "antmaze" else None), dataset
        assert found.get("eval_freq", 5_000) == (1_000 if family == "human" else 5_000), dataset
        # Decision Transformer is quoted from its own paper, with its own number of updates.
        updates = 10_000 if family == "human" else 1_000_000
        assert found["n_timesteps"] == (100_000 if algorithm == "decision_transformer" and family != "human" else updates)


def test_settings_of_single_tasks() -> None:
    for dataset in MUJOCO:
        assert settings("infodmpo", dataset)["advantage_scale"] == (
            5.0 if "hopper" in dataset and "medium-expert" in dataset else 10.0
        ), dataset
    for maze, expected in DIFFUSION_MAZES.items():
        found = settings("diffusion_ql", f"D4RL/antmaze/{maze}-v1")
        assert (found["learning_rate"], found["eta"], found["max_q_backup"], found["max_grad_norm"]) == expected, maze
    norms = {"halfcheetah": (9, 2, 7), "hopper": (9, 4, 5), "walker2d": (1, 4, 5)}
    for env, values in norms.items():
        for quality, norm in zip(("medium", "medium-replay", "medium-expert"), values, strict=True):
            assert settings("diffusion_ql", f"{env}-{quality}-v2.hdf5")["max_grad_norm"] == norm, (env, quality)
