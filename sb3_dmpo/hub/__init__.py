"""
Models on the Hugging Face Hub, as Stable-Baselines3 puts them there: ``sb3_dmpo push model.zip user/name``.

Everything up to the upload happens offline (``--folder FOLDER`` stops there). What comes down goes through the checked load.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sb3_dmpo
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.offline_evaluation import dataset_of
from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.minari import is_minari_id
from sb3_dmpo.envs.registration import environment_name
from sb3_dmpo.files.save_util import path_to_read
from sb3_dmpo.hub.summary import evaluation_text, plain_text, read_summary, summary_lines
from sb3_dmpo.plots.common import METHOD_NAMES

PICTURE, CARD = "sub_policies.png", "README.md"
#: Every card says it.
MADE_BY = "Trained with sb3_dmpo, offline reinforcement learning for Stable-Baselines3."


def model_file_name(path: Path) -> str:
    """
    Name of a model in its repository, by SB3's naming scheme: ``dmpo-D4RL-pen-human-v2.zip``.

    :param path: the model's zip
    :raises ValueError: the zip is of no algorithm of this package
    """
    from huggingface_sb3 import EnvironmentName, ModelName  # type: ignore[import-untyped]

    summary = read_summary(path)
    if summary.algorithm is None:
        raise ValueError(f"{path} is of no algorithm of this package.")
    dataset = summary.attributes.get("dataset_id") or "own-data"
    return str(ModelName(summary.algorithm, EnvironmentName(environment_name(str(dataset)))).filename)


def model_card(path: Path, repo_id: str, command: str | None = None, has_picture: bool = False) -> str:
    """
    The card of a model: metadata of the hub, dataset, scores, command, how to load it.

    :param path: the model's zip
    :param repo_id: ``user/name``
    :param command: what was typed to train it
    :param has_picture: whether the picture of the sub-policies lies beside the card
    """
    import yaml

    summary = read_summary(path)
    name, dataset = method_name(summary.algorithm), plain_text(summary.attributes.get("dataset_id") or "own data")
    metadata: dict[str, Any] = {
        "library_name": "stable-baselines3",
        "tags": [dataset, "offline-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3_dmpo"],
    }
    evaluation, score = summary.evaluation, "It was not evaluated in training."
    if evaluation is not None:
        score = f"Last evaluation in training: {evaluation_text(evaluation)}."
        value = f"{float(evaluation['mean_return']):.2f} +/- {float(evaluation['std_return']):.2f}"
        result = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": dataset, "type": dataset},
            "metrics": [{"type": "mean_reward", "name": "mean_reward", "value": value, "verified": False}],
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    lines = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {name} trained on {dataset}\n",
        f"{score}\n",
        f"{MADE_BY}\n",
        "```python",
        f"from sb3_dmpo import {summary.class_name}",
        "from sb3_dmpo.hub import load_from_hub",
        "",
        f'model = load_from_hub("{repo_id}")  # a {summary.class_name}; nothing in the file is executed',
        *_usage(summary.algorithm),
        "```\n",
    ]
    if command:
        lines += ["Trained by:\n", f"```bash\n{plain_text(command)}\n```\n"]
    if has_picture:
        lines += [f"## Sub-policies\n\n![Which sub-policy acts where, and how often]({PICTURE})\n"]
    lines += ["## What is in the zip\n", "| | |", "|---|---|"]
    rows = [row for row in summary_lines(summary) if row[0] != "file"]
    lines += [f"| {key} | {text.replace('|', '/').replace('<', '&lt;')} |" for key, text in rows]
    return "\n".join(lines) + "\n"


def _usage(algorithm: str | None) -> list[str]:
    """
    How a model acts, as lines of Python.

    :param algorithm: its name in ``sb3_dmpo.ALGOS``
    """
    policy: Any = None if algorithm is None else sb3_dmpo.ALGOS[algorithm].policy_aliases["MlpPolicy"]
    if policy is None or not policy.has_memory:
        return ["action, _ = model.predict(observation, deterministic=True)"]
    return [
        "state = None  # at the beginning of every episode: the model remembers what has happened in it",
        "action, state = model.predict(observation, state, deterministic=True)",
    ]


def write_repository(path: str | Path, folder: Path, repo_id: str, command: str | None = None) -> list[str]:
    """
    Everything that goes to the hub, in a folder; names of the files.

    :param path: the model's zip, or its name without ".zip"
    :param folder: where to write
    :param repo_id: ``user/name``
    :param command: what was typed to train it; None: what the command line has written beside the zip, if it has
    """
    from sb3_dmpo.plots.components import plot_components

    path = path_to_read(path, ".zip")
    name = model_file_name(path)
    model = sb3_dmpo.load(path, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(path.read_bytes())
    if command is None:
        # The folder of a fine-tuned model lies in that of its run.
        run = path.parent.parent if path.parent.name == "finetune" else path.parent
        found = sorted(run.glob("*/command.txt"))
        command = found[0].read_text(encoding="utf-8") if found else None
    is_mixture = hasattr(model.policy, "component_q_values")
    has_picture = False
    # A file whose name stands in a zip is not opened.
    if is_mixture and is_minari_id(str(model.dataset_id)):
        # Data that are not on this machine, or are not the model's, leave the card without one.
        with contextlib.suppress(DatasetError):
            observations = dataset_of(model).observations
            plot_components(model.policy, observations, folder / PICTURE, title=method_name(read_summary(path).algorithm))
            has_picture = True
    (folder / CARD).write_text(model_card(path, repo_id, command, has_picture), encoding="utf-8")
    return sorted(file.name for file in folder.iterdir())


def method_name(algorithm: str | None) -> str:
    """
    What pictures and cards call an algorithm.

    :param algorithm: its name in ``sb3_dmpo.ALGOS``; None: it is not of this package
    """
    return METHOD_NAMES.get(algorithm or "", algorithm or "A model")


@contextlib.contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """
    Turn what goes wrong on the way to the hub into one kind of error.

    :param repo_id: ``user/name``
    :raises ConnectionError: the hub was not reached, or refused
    """
    try:
        yield
    except Exception as error:  # of several HTTP libraries, which differ with the hub's version
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        how = "Check the name, the network and the token (`hf auth login`)"
        raise ConnectionError(f"{repo_id} on the Hugging Face Hub cannot be used ({reason}). {how}.") from error


def push_to_hub(
    model: OfflineAlgorithm | str | Path,
    repo_id: str,
    command: str | None = None,
    commit_message: str = "Add model",
    token: str | None = None,
    api: Any = None,
) -> str:
    """
    Upload a model with its card; the address of the repository.

    :param model: a model, or the path of its zip, with or without ".zip"
    :param repo_id: ``user/name``; made if it is not there
    :param command: what was typed to train it
    :param commit_message: message of the commit
    :param token: of the hub; None: the one that is stored on this machine
    :param api: what talks to the hub, by default ``huggingface_hub.HfApi``
    :raises ConnectionError: the hub was not reached, or refused
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(model, OfflineAlgorithm):
            path = Path(temporary) / "model.zip"
            model.save(path)
        else:
            path = Path(model)
        folder = Path(temporary) / "repository"
        write_repository(path, folder, repo_id, command)
        with _one_sentence(repo_id):
            url = api.create_repo(repo_id=repo_id, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(url)


def load_from_hub(repo_id: str, filename: str | None = None, api: Any = None, **kwargs: Any) -> OfflineAlgorithm:
    """
    Download a model and load it, checked as every file from somebody else: nothing in it is unpickled freely.

    :param repo_id: ``user/name``
    :param filename: the zip in the repository; None: its only one
    :param api: what talks to the hub, by default ``huggingface_hub.HfApi``
    :param kwargs: arguments of ``load``, e.g. ``device``
    :raises ConnectionError: the hub was not reached, or refused
    :raises ValueError: no or several zips, or a zip of no algorithm of this package
    :raises DamagedFileError: the file is not complete
    :raises UnsafeFileError: the file asks for something that a model does not need
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    if filename is None:
        with _one_sentence(repo_id):
            zips = [name for name in api.list_repo_files(repo_id=repo_id) if name.endswith(".zip")]
        if len(zips) != 1:
            raise ValueError(f"{repo_id} holds the zips {zips}: name one as `filename`.")
        filename = zips[0]
    # Not huggingface_sb3.load_from_hub: it asks to trust the file, which is not needed here.
    with _one_sentence(repo_id):
        path = Path(api.hf_hub_download(repo_id=repo_id, filename=filename))
    return sb3_dmpo.load(path, **kwargs)
