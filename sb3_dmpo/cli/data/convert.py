"""D4RL's original HDF5 files as Minari datasets, so that a run knows its environment and its reference scores."""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from sb3_dmpo.cli.configs import entry_keys
from sb3_dmpo.cli.environments import check_env_id
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.common.evaluation import reference_scores
from sb3_dmpo.data.loading import load_transitions
from sb3_dmpo.data.minari_write import check_new_id, episodes_of, write_new_dataset

#: Environments nearest to those that D4RL's data were recorded in, and D4RL's time limit where it is another.
ENVIRONMENTS: dict[str, tuple[str, int | None]] = {
    "hopper": ("Hopper-v4", None),
    "halfcheetah": ("HalfCheetah-v4", None),
    "walker2d": ("Walker2d-v4", None),
    "ant": ("Ant-v4", None),
    "pen": ("AdroitHandPen-v1", 100),
    "hammer": ("AdroitHandHammer-v1", None),
    "door": ("AdroitHandDoor-v1", None),
    "relocate": ("AdroitHandRelocate-v1", None),
}
_SUFFIXES = (".hdf5", ".h5")


def add_convert(commands: Any) -> None:
    """
    Add the subcommand ``convert``.

    :param commands: subcommands of the parser
    """
    parser = commands.add_parser("convert", help="make a Minari dataset of an HDF5 file of the original D4RL")
    parser.add_argument("file", help="e.g. hopper-medium-v2.hdf5")
    parser.add_argument("dataset", help="id of the new dataset, e.g. my/hopper/medium-v0")
    parser.add_argument("--env", help="environment to evaluate in (default: by the name of the file; none: no environment)")
    parser.set_defaults(run=convert)


def environment_spec(file: str, env_id: str | None) -> EnvSpec | None:
    """
    Environment of a D4RL file; None where none is known.

    :param file: path of the file, whose name begins with that of the task
    :param env_id: environment that was asked for; ``none``: no environment
    :raises UsageError: there is no such environment
    """
    if env_id == "none":
        return None
    known, limit = ENVIRONMENTS.get(Path(file).name.lower().partition("-")[0], (None, None))
    name = env_id or known
    if name is None:
        return None
    register_robotics()
    check_env_id(name)
    spec = copy.deepcopy(gym.spec(name))
    if name == known and limit is not None:
        spec.max_episode_steps = limit
    return spec


def register_robotics() -> None:
    """Register the environments of gymnasium-robotics where it is installed."""
    try:
        import gymnasium_robotics
    except ImportError:
        return
    gym.register_envs(gymnasium_robotics)


def convert(options: argparse.Namespace) -> None:
    """
    Write a file's transitions, unchanged, as a Minari dataset.

    :param options: ``file``, ``dataset``, ``env``
    :raises UsageError: no HDF5 file, or an unknown environment
    :raises DatasetError: the file cannot be read, or the id is taken
    """
    if not options.file.lower().endswith(_SUFFIXES):
        raise UsageError(f"{options.file}: expected an HDF5 file of D4RL ({' or '.join(_SUFFIXES)}).")
    check_new_id(options.dataset)
    spec = environment_spec(options.file, options.env)
    transitions = load_transitions(options.file, cache=False)
    reference = None if spec is None else reference_scores(env_id=spec.id)
    scores = {} if reference is None else {"ref_min_score": reference.min, "ref_max_score": reference.max}

    def episodes() -> Iterator[EpisodeBuffer]:
        n = len(transitions.episode_lengths)
        yield from tqdm(episodes_of(transitions), total=n, unit="episode", desc=options.dataset)

    write_new_dataset(
        options.dataset,
        episodes(),
        transitions.observation_space,
        transitions.action_space,
        spec,
        description=f"The transitions of D4RL's {Path(options.file).name}, converted.",
        **scores,
    )
    print(f"{options.dataset}: {len(transitions):,} transitions in {len(transitions.episode_lengths):,} episodes")
    if spec is None:
        print("It knows no environment: name one with --env when you train, or train with --eval-freq -1.")
    else:
        where = "no reference scores are known" if reference is None else f"reference scores from {reference.source}"
        print(f"Evaluation in {spec.id}, {where}. Settings are those of {', '.join(entry_keys(options.dataset)[1:3])}.")
