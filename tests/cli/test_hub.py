"""The hub, with a folder in its place: what is uploaded, and that what comes down is checked."""

import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml

from sb3_dmpo import BC, DMPO, load
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset
from sb3_dmpo.files.safe_zip import DamagedFileError
from sb3_dmpo.hub import load_from_hub, push_to_hub, write_repository
from tests.contract import DATA, make
from tests.doors import push

pytest.importorskip("huggingface_sb3")
pytest.importorskip("matplotlib")

Outcome = tuple[int, str, str]


class FolderApi:
    """Keeps repositories as folders, behind the methods of ``huggingface_hub.HfApi`` that are used."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, exist_ok: bool) -> str:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub.invalid/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def list_repo_files(self, repo_id: str) -> list[str]:
        return sorted(path.name for path in (self.root / repo_id).iterdir())

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        return str(self.root / repo_id / filename)


@pytest.fixture(scope="module")
def toy_model() -> DMPO:
    model = DMPO(dataset=make_two_goals_dataset(), n_components=3, batch_size=16, seed=0, policy_kwargs={"net_arch": [8]})
    model.learn(4)
    model.last_evaluation = {
        "updates": 4,
        "n_episodes": 2,
        "mean_return": 0.5,
        "std_return": 0.25,
        "success_rate": 0.5,
        "normalized_score": 50.0,
        "reference": "the toy",
    }
    return model


def test_push_and_load(toy_model: DMPO, tmp_path: Path) -> None:
    api = FolderApi(tmp_path)
    assert push_to_hub(toy_model, "me/toy", command="python -m sb3_dmpo train --algo dmpo", api=api).endswith("me/toy")
    assert api.list_repo_files("me/toy") == ["README.md", "dmpo-TwoGoals-v0.zip", "sub_policies.png"]
    loaded = load_from_hub("me/toy", api=api, device="cpu")
    assert type(loaded) is DMPO and loaded.num_timesteps == 4
    observations = DATA.observations[:5, :2]
    assert (loaded.predict(observations)[0] == toy_model.predict(observations)[0]).all()


def test_the_card_says_what_one_needs_to_know(toy_model: DMPO, tmp_path: Path) -> None:
    push_to_hub(toy_model, "me/toy", command="python -m sb3_dmpo train --algo dmpo", api=FolderApi(tmp_path))
    card = (tmp_path / "me/toy/README.md").read_text()
    metadata = yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])
    assert metadata["library_name"] == "stable-baselines3" and TWO_GOALS_DATASET_ID in metadata["tags"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == "0.50 +/- 0.25"
    for text in (
        "# DMPO trained on",
        "normalised 50.0",
        "python -m sb3_dmpo train --algo dmpo",
        "(sub_policies.png)",
        "n_components=3",
    ):
        assert text in card
    assert (tmp_path / "me/toy/sub_policies.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_without_sub_policies_scores_and_command(tmp_path: Path) -> None:
    make("bc", dataset=DATA).save(tmp_path / "model.zip")
    api = FolderApi(tmp_path / "hub")
    push_to_hub(tmp_path / "model.zip", "me/bc", api=api)
    card = (tmp_path / "hub/me/bc/README.md").read_text()
    assert "not evaluated" in card and "Trained by" not in card and "sub_policies" not in card
    assert type(load_from_hub("me/bc", api=api)) is BC


def test_no_file_that_the_zip_names_is_opened(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    make("dmpo", dataset=make_two_goals_dataset()).save("model.zip")
    model = load("model.zip")
    size = model.observation_space.shape[0]
    np.savez(
        "log.npz",
        **{"observations": np.zeros((20, size)), "actions": np.zeros((20, 2)), "rewards": np.zeros(20)},
        **{"terminals": np.arange(20) % 10 == 9, "timeouts": np.zeros(20, bool)},
    )
    model.dataset_id = "log.npz"
    model.save("of_a_file.zip")
    assert write_repository("of_a_file.zip", Path("out"), "me/model") == ["README.md", "dmpo-log-v0.zip"]


def test_no_picture_of_data_that_the_model_does_not_fit(tmp_path: Path) -> None:
    model = make("dmpo", dataset=DATA)
    make_two_goals_dataset()
    model.dataset_id = TWO_GOALS_DATASET_ID
    model.save(tmp_path / "model.zip")
    assert write_repository(tmp_path / "model", tmp_path / "out", "me/model") == ["README.md", "dmpo-TwoGoals-v0.zip"]


@pytest.mark.parametrize("name", ["bc", "decision_transformer"])
def test_the_code_of_the_card_runs_for_an_episode(tmp_path: Path, name: str) -> None:
    make(name, dataset=DATA).save(tmp_path / "model.zip")
    api = FolderApi(tmp_path / "hub")
    push_to_hub(tmp_path / "model", "me/model", api=api)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "hub/me/model/README.md").read_text(), re.DOTALL)[1]
    setup, act = code.rstrip().rsplit("\n", 1)
    names: dict[str, Any] = {"observation": DATA.observations[0], "api": api}
    exec(setup.replace('load_from_hub("me/model")', 'load_from_hub("me/model", api=api)'), names)
    for _ in range(2):
        exec(act, names)
    remembered = names.get("state")
    assert (remembered is not None and remembered.lengths.tolist() == [2]) if name != "bc" else remembered is None


def test_what_comes_down_is_checked(toy_model: DMPO, tmp_path: Path) -> None:
    api = FolderApi(tmp_path)
    push_to_hub(toy_model, "me/toy", api=api)
    path = tmp_path / "me/toy/dmpo-TwoGoals-v0.zip"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError):
        load_from_hub("me/toy", api=api)
    tensors = tmp_path / "tensors"
    th.save({}, tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")
        archive.write(tensors, "policy.pth")
    with pytest.raises(ValueError, match="no algorithm"):
        load_from_hub("me/toy", api=api)
    (tmp_path / "me/toy/other.zip").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match="name one"):
        load_from_hub("me/toy", api=api)


def test_the_command_writes_a_folder_offline(
    toy_model: DMPO, call: Callable[..., Outcome], tmp_path: Path, monkeypatch: Any
) -> None:
    toy_model.save(tmp_path / "model.zip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = call(push, "model.zip", "me/toy", "--folder", "out", "--command", "train it")
    assert code == 0 and "README.md, dmpo-TwoGoals-v0.zip, sub_policies.png" in out, err
    # As `load` and `inspect` find it
    code, again, err = call(push, "model", "me/toy", "--folder", "again", "--command", "train it")
    assert code == 0 and again == out.replace("out", "again"), err
    assert (tmp_path / "again/dmpo-TwoGoals-v0.zip").read_bytes() == (tmp_path / "model.zip").read_bytes()
    code, _, err = call(push, "nothing", "me/toy", "--folder", "nowhere")
    assert code == 1 and "nothing" in err and len(err.splitlines()) == 1 and not (tmp_path / "nowhere").exists()
    # Its own folder may be written again, a user's may not.
    assert call(push, "model", "me/toy", "--folder", "again")[0] == 0
    make("td3_bc", env="TwoGoals-v0").save(tmp_path / "other")
    code, _, err = call(push, "other", "me/toy", "--folder", "again")
    assert code == 2 and "--folder again is of another model (dmpo-TwoGoals-v0.zip): name a new folder" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("precious")
    code, _, err = call(push, "model", "me/toy", "--folder", "mine")
    assert code == 2 and "--folder mine holds other files" in err and (tmp_path / "mine/README.md").read_text() == "precious"
    (tmp_path / "model.zip").write_bytes(b"no zip")
    code, _, err = call(push, "model.zip", "me/toy", "--folder", "out")
    assert code == 2 and len(err.splitlines()) == 1


def test_a_hub_that_is_not_reached_is_one_sentence() -> None:
    class Offline:
        def list_repo_files(self, repo_id: str) -> list[str]:
            raise RuntimeError("[Errno -3] Temporary failure in name resolution\n(a second line)")

    with pytest.raises(
        ConnectionError, match=r"^a/b on the Hugging Face Hub cannot be used \(RuntimeError: .*resolution\)\. Check"
    ):
        load_from_hub("a/b", api=Offline())
