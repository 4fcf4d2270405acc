"""Files of D4RL, d3rlpy and OGBench as Minari datasets, so that a run knows its environment and its reference scores."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from sb3_dmpo.cli.errors import Parser, UsageError, check_env_id
from sb3_dmpo.data import DatasetError, DatasetSource, load_transitions, open_dataset
from sb3_dmpo.data.minari import MinariSource
from sb3_dmpo.data.minari_write import check_new_id, episodes_of, write_new_dataset
from sb3_dmpo.data.preprocessing import nested_space
from sb3_dmpo.data.recorded_env import register_robotics
from sb3_dmpo.data.tasks import TASKS, entry_keys, reference_scores, task_and_quality
from sb3_dmpo.data.validation import check_environment, environment_spaces


def environment_spec(file: str, env_id: str | None) -> EnvSpec | None:
    """
    Environment of a D4RL file; None where none is known.

    :param file: path of the file, whose name begins with that of the task
    :param env_id: environment that was asked for; ``none``: no environment
    :raises UsageError: there is no such environment
    """
    if env_id == "none":
        return None
    task = TASKS.get(task_and_quality(Path(file).name)[0])
    known, limit = (None, None) if task is None else (task.env_id, task.time_limit)
    name = env_id or known
    if name is None:
        return None
    register_robotics()
    check_env_id(name)
    spec = copy.deepcopy(gym.spec(name))
    if name == known and limit is not None:
        spec.max_episode_steps = limit
    return spec


def check_suggested(file: str, source: DatasetSource, spec: EnvSpec) -> None:
    """
    Compare a file with the environment that its name suggests, if that can be made here.

    :param file: path of the file
    :param source: the file
    :param spec: the environment
    :raises UsageError: it gives other observations, or takes other actions
    """
    try:
        with warnings.catch_warnings():
            # D4RL's tasks are out of date, as gymnasium says.
            warnings.simplefilter("ignore", DeprecationWarning)
            env = gym.make(spec)
    except Exception as error:  # of a library that is missing: any
        print(f"{spec.id} cannot be made here, so that the file is not compared with it ({error}).")
        return
    with contextlib.closing(env):
        try:
            check_environment(source.label, source.observation_space, source.action_space, env)
        except DatasetError:
            observed, acted = environment_spaces(env, source.label)
            raise UsageError(
                f"{file} does not fit {spec.id}, which its name suggests: it holds observations of "
                f"{source.observation_space} and actions of {source.action_space}, not of {observed} and {acted}. "
                "Name another environment with --env ID, or none with --env none."
            ) from None


def run(argv: Sequence[str]) -> None:
    """
    Write a file's transitions, unchanged, as a Minari dataset.

    :param argv: arguments
    :raises UsageError: the id of a dataset instead of a file, or an unknown environment
    :raises DatasetError: the file cannot be read, or the id is taken
    """
    parser = Parser(
        prog="sb3_dmpo convert",
        description="Make a Minari dataset of a file of the original D4RL or d3rlpy, or of OGBench's format with rewards.",
    )
    parser.add_argument("file", help="e.g. hopper-medium-v2.hdf5, a folder of .npz shards")
    parser.add_argument("dataset", help="id of the new dataset, e.g. my/hopper/medium-v0")
    parser.add_argument("--env", help="environment to evaluate in (default: by the name of the file; none: no environment)")
    parser.add_argument("--clip-actions", action="store_true", help="clip actions outside the bounds, and say how many")
    options = parser.parse_args(argv)
    check_new_id(options.dataset)
    spec = environment_spec(options.file, options.env)
    source = open_dataset(options.file)
    if isinstance(source, MinariSource):
        raise UsageError(f"{options.file} is a Minari dataset already: name a file of D4RL, d3rlpy or OGBench.")
    if not source.has_rewards:
        raise UsageError(f"{options.file} holds no rewards, which a Minari dataset needs: write them into the file.")
    if spec is not None and options.env is None:
        check_suggested(options.file, source, spec)
    with contextlib.ExitStack() as stack:
        # What was typed knows the bounds of the actions; what the name of the file says is D4RL's, from -1 to 1.
        is_named = options.env not in (None, "none")
        env = stack.enter_context(contextlib.closing(gym.make(options.env))) if is_named else None
        transitions = load_transitions(source, env=env, cache=False, clip_actions=options.clip_actions)
    try:
        observation_space = nested_space(transitions.observation_space)
    except ValueError as error:
        raise UsageError(f"{options.file} cannot be a Minari dataset: {error}.") from None
    reference = None if spec is None else reference_scores(env_id=spec.id)
    scores = {} if reference is None else {"ref_min_score": reference.min, "ref_max_score": reference.max}

    def episodes() -> Iterator[EpisodeBuffer]:
        n = len(transitions.episode_lengths)
        yield from tqdm(episodes_of(transitions, observation_space), total=n, unit="episode", desc=options.dataset)

    write_new_dataset(
        options.dataset,
        episodes(),
        observation_space,
        transitions.action_space,
        spec,
        description=f"The transitions of {Path(options.file).name}, converted.",
        **scores,
    )
    print(f"{options.dataset}: {len(transitions):,} transitions in {len(transitions.episode_lengths):,} episodes")
    if spec is None:
        print("It knows no environment: name one with --env when you train, or train with --eval-freq -1.")
    else:
        where = "no reference scores are known" if reference is None else f"reference scores from {reference.source}"
        print(f"Evaluation in {spec.id}, {where}. Settings are those of {', '.join(entry_keys(options.dataset)[1:3])}.")
