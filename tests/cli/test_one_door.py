"""The table of verbs, and that a run opens its dataset once."""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

import sb3_dmpo
from sb3_dmpo.__main__ import VERBS, main
from sb3_dmpo.envs import make_two_goals_dataset
from tests.cli.test_train import TINY, Outcome
from tests.doors import describe, enjoy, train

pytest.importorskip("rl_zoo3")


def test_help_and_version(call: Callable[..., Outcome]) -> None:
    for arguments in ([], ["--help"]):
        code, out, err = call(main, *arguments)
        assert (code, err) == (0, "") and all(verb in out for verb in VERBS)
    assert call(main, "--version") == (0, f"{sb3_dmpo.__version__}\n", "")


def test_unknown_verbs_are_refused_with_the_nearest_one(call: Callable[..., Outcome]) -> None:
    code, out, err = call(main, "trian", "--algo", "dmpo")
    assert (code, out) == (2, "") and err == "sb3_dmpo: error: There is no verb 'trian'. Did you mean train?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_calls_itself_by_its_name(verb: str, call: Callable[..., Outcome], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: sb3_dmpo {verb} ")
    code, _, err = call(main, verb, "--no-such-option")
    assert code == 2 and err.startswith(f"sb3_dmpo {verb}: error: ") and err.count("\n") == 1


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets' files that are opened from here on, by name."""
    names: list[str] = []

    def noting(function: Any) -> Any:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, str | os.PathLike) and "minari" in Path(file).parts and "data" in Path(file).parts:
                names.append(Path(file).name)
            return function(file, *args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", noting(open))
    monkeypatch.setattr(io, "open", noting(io.open))
    monkeypatch.setattr(h5py, "File", noting(h5py.File))
    return names


SMALL = [option for option in TINY if option not in ("--seed", "1")]


@pytest.mark.usefixtures("toy_drawn")
@pytest.mark.parametrize(
    "options",
    [
        ["--seed", "2"],
        pytest.param(["--seeds", "0-1"], marks=pytest.mark.slow),
        ["--finetune", "4", "--finetune-params", "learning_starts:2"],
    ],
)
def test_a_run_opens_its_dataset_once(
    options: list[str], call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_two_goals_dataset()
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path / "cache"))
    names = opened(monkeypatch)
    code, _, err = call(train, *SMALL, *options)
    assert code == 0, err
    # The picture of the toy reads its data again where the copy in the cache is not written yet.
    assert names[:2] == ["metadata.json", "main_data.hdf5"] and set(names[2:]) <= {"main_data.hdf5"} and len(names) <= 3


def test_enjoy_opens_the_metadata_and_describe_both(
    call: Callable[..., Outcome], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = opened(monkeypatch)
    assert call(enjoy, "-f", str(tiny), "--no-render", "--episodes", "1")[0] == 0
    assert names == ["metadata.json"]
    assert call(describe, "sb3_dmpo/two-goals/demonstrations-v0")[0] == 0
    assert names.count("metadata.json") == 2
