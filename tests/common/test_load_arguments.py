"""What `load` and `set_parameters` are told: it has an effect or is refused, and nothing is half done."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

import sb3_dmpo
from sb3_dmpo import TD3BC
from sb3_dmpo.common import offline_algorithm
from sb3_dmpo.data import DatasetError
from sb3_dmpo.files.plain_text import FileError
from tests.toy_data import make_transitions

TINY: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 16, "device": "cpu"}


DATA = make_transitions()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.zip"
    TD3BC(dataset=DATA, seed=0, **TINY).learn(4).save(path)
    return path


def flat(model: TD3BC) -> np.ndarray:
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()


def test_a_name_in_a_zip_is_not_taken_for_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a Minari dataset has the id of the whole, and any arrays may bear any id."""
    TD3BC(dataset=replace(make_transitions(5), dataset_id="my/toy-v0"), seed=0, **TINY).learn(2).save(tmp_path / "part")
    real = offline_algorithm.make_buffer
    monkeypatch.setattr(
        offline_algorithm,
        "make_buffer",
        lambda dataset, *args, **kwargs: real(replace(DATA, dataset_id=dataset), *args, **kwargs),
    )
    for reset in (True, False):
        with pytest.raises(DatasetError, match="pass the data to `load` as `dataset=`"):
            TD3BC.load(tmp_path / "part").learn(2, reset_num_timesteps=reset)
    monkeypatch.undo()
    # The advice works.
    assert TD3BC.load(tmp_path / "part", dataset=DATA).learn(2).replay_buffer.size() == len(DATA.rewards)


@pytest.mark.parametrize("what", ["shapes", "optimizer", "nan"])
def test_parameters_that_do_not_fit_change_nothing(what: str) -> None:
    model = TD3BC(dataset=DATA, seed=0, **TINY).learn(4)
    wrong = copy.deepcopy(
        TD3BC(dataset=replace(DATA, observations=3.0 * DATA.observations), seed=1, **TINY).learn(4).get_parameters()
    )
    name = next(name for name in reversed(wrong["policy"]) if name.endswith("weight"))
    if what == "shapes":
        wrong["policy"][name] = wrong["policy"][name][:, :-1]
    elif what == "nan":
        wrong["policy"][name][0, 0] = float("nan")
    else:
        wrong["actor_optimizer"] = {"junk": 1}
    before, state = flat(model), copy.deepcopy(model.get_parameters()["actor_optimizer"])
    action = model.predict(np.ones(3, np.float32))[0]
    with pytest.raises(ValueError, match="not finite" if what == "nan" else "do not fit"):
        model.set_parameters(wrong)
    assert (flat(model) == before).all() and (model.predict(np.ones(3, np.float32))[0] == action).all()
    after = model.get_parameters()["actor_optimizer"]
    assert all(th.equal(state["state"][0][key], after["state"][0][key]) for key in state["state"][0])
    model.learn(2)


def test_a_seed_given_to_load_is_used(path: Path) -> None:
    def going_on(**kwargs: Any) -> np.ndarray:
        return flat(TD3BC.load(path, dataset=DATA, **kwargs).learn(4, reset_num_timesteps=False))

    five, again, six, stored = going_on(seed=5), going_on(seed=5), going_on(seed=6), going_on()
    assert (five == again).all() and not (five == six).all() and not (five == stored).all()


@pytest.mark.parametrize("name", ["gradient_steps", "train_freq", "learning_starts", "online_ratio"])
def test_what_belongs_to_learn_online_is_refused(path: Path, name: str) -> None:
    with pytest.raises(TypeError, match=rf"no argument '{name}'. It is an argument of `learn_online`"):
        TD3BC.load(path, **{name: 2})


def test_a_scaler_stays(path: Path) -> None:
    with pytest.raises(ValueError, match="normalize_observations is True in the file"):
        TD3BC.load(path, normalize_observations=False)
    assert TD3BC.load(path, normalize_observations=True).normalize_observations


def test_the_callers_mistakes_are_not_the_files(path: Path) -> None:
    for kwargs in ({"ema_decay": 0.9}, {"custom_objects": {"batch_size": "x"}}):
        with pytest.raises(ValueError, match="|".join([*kwargs, "batch_size"])) as caught:
            TD3BC.load(path, **kwargs)
        assert not isinstance(caught.value, FileError)
    with pytest.raises(TypeError, match="custom_objects is a list"):
        TD3BC.load(path, custom_objects=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device is 'gpu'"):
        TD3BC.load(path, device="gpu")


def test_a_path_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = TD3BC(dataset=DATA, **TINY).learn(1)
    methods: list[Any] = [model.save, model.save_replay_buffer, model.set_parameters]
    for method in (*methods, model.load_replay_buffer, TD3BC.load, sb3_dmpo.load):
        for path in ("", Path()):
            with pytest.raises(ValueError, match="The path is empty"):
                method(path)
    with pytest.raises(IsADirectoryError):
        model.load_replay_buffer("/")
    assert not list(tmp_path.iterdir())
