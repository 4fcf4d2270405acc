"""Every way by which a file comes in goes through the same gate: nothing is executed, and the command line says one line."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sb3_dmpo import DMPO
from sb3_dmpo.files.safe_zip import UnsafeFileError
from sb3_dmpo.hub import load_from_hub
from tests.cli.test_train import Outcome, assert_one_line
from tests.files.test_safe_zip import PAYLOADS, pickled, with_attribute, with_setting
from tests.toy_data import make_transitions

pytest.importorskip("rl_zoo3")

from tests.doors import enjoy, inspect, train

RUN = ["--algo", "dmpo", "-n", "4", "--seed", "1", "--save-freq", "2", "--eval-freq", "2", "--eval-episodes", "1"]
SETTINGS = ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:4"]
FINETUNE = ["--finetune", "8", "--finetune-params", "learning_starts:2"]
FOLDER = Path("logs/dmpo/TwoGoals-v0_1")
ZIP = FOLDER / "TwoGoals-v0.zip"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an online stage."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train([*RUN, *FINETUNE, *SETTINGS]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it in the current folder."""
    shutil.copytree(finished / "logs", tmp_path / "logs")
    return tmp_path


def make_hostile(path: Path, marker: Path) -> None:
    attribute = pickled(PAYLOADS["exec"](str(marker)))
    path.write_bytes(with_attribute(path.read_bytes(), "observation_space", attribute).getvalue())


def name_a_class(path: Path, marker: Path) -> None:
    attribute = {"$type": "class", "name": "builtins:exec"}
    path.write_bytes(with_setting(path.read_bytes(), "observation_space", attribute).getvalue())


def damage(path: Path, marker: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(make_hostile, "asks for builtins.exec"), (name_a_class, "asks for the class builtins.exec"), (damage, "checksum")],
)
def test_zips_of_the_command_line(
    call: Callable[..., Outcome], run: Path, spoil: Callable[[Path, Path], None], words: str
) -> None:
    marker = run / "executed"
    spoil(run / ZIP, marker)
    assert_one_line(call(train, *RUN, "-i", str(ZIP)), str(ZIP), words)
    assert_one_line(call(enjoy, "--algo", "dmpo", "--no-render", "--episodes", "1"), words)
    if spoil is damage:
        assert_one_line(call(inspect, str(ZIP)), str(ZIP), words)
    assert not marker.exists()


def test_hostile_checkpoints_of_a_resumed_run(call: Callable[..., Outcome], run: Path) -> None:
    marker = run / "executed"
    (run / ZIP).unlink()
    newest = FOLDER / "rl_model_4_steps.zip"
    make_hostile(run / newest, marker)
    assert_one_line(call(train, *RUN, *SETTINGS, "--resume"), str(newest), "asks for builtins.exec")
    assert not marker.exists()


def test_hostile_checkpoints_of_a_resumed_online_stage(call: Callable[..., Outcome], run: Path) -> None:
    marker, stage = run / "executed", FOLDER / "finetune"
    (run / stage / "TwoGoals-v0.zip").unlink()
    newest = stage / "rl_model_8_steps.zip"
    make_hostile(run / newest, marker)
    assert_one_line(call(train, *RUN, *FINETUNE, *SETTINGS, "--resume"), str(newest), "asks for builtins.exec")
    assert not marker.exists()


def test_arrays_beside_a_run(call: Callable[..., Outcome], run: Path) -> None:
    """Objects in arrays are pickles: evaluations and collected transitions hold none."""
    (run / ZIP).unlink()
    evaluations = FOLDER / "evaluations.npz"
    for content in ({"timesteps": np.array([np.float64, 2], object)}, {"results": np.zeros(2)}):
        np.savez(run / evaluations, **content)
        assert_one_line(call(train, *RUN, *SETTINGS, "--resume"), str(evaluations), code=1)
    (run / evaluations).write_bytes(b"no arrays")
    assert_one_line(call(train, *RUN, *SETTINGS, "--resume"), str(evaluations), code=1)
    model = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, device="cpu").learn(1)
    np.savez(run / "collected.npz", observations=np.array([make_transitions], object))
    with pytest.raises(UnsafeFileError, match=r"collected\.npz"):
        model.load_replay_buffer(run / "collected")


def test_zip_bomb_given_with_i(call: Callable[..., Outcome], run: Path) -> None:
    with zipfile.ZipFile(run / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b'{"seed": ' + b" " * 10**7 + b"1}")
        archive.writestr("policy.pth", b"")
    assert_one_line(call(train, *RUN[:4], "-i", "bomb.zip"), "bomb.zip", "would grow")


def test_models_of_the_hub(run: Path) -> None:
    marker = run / "executed"
    make_hostile(run / ZIP, marker)

    def download(repo_id: str, filename: str) -> str:
        return str(run / ZIP)

    api: Any = SimpleNamespace(list_repo_files=lambda repo_id: ["model.zip"], hf_hub_download=download)
    with pytest.raises(UnsafeFileError, match=r"asks for builtins\.exec"):
        load_from_hub("me/model", api=api)
    assert not marker.exists()
