import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch as th

# Before any test module is imported: no window, no GL context, no display.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MUJOCO_GL", "disabled")

#: Where the user's datasets are, for the few tests of real data.
OWN_DATASETS = os.environ.get("MINARI_DATASETS_PATH")

# The networks of the tests are tiny: more threads cost more than they bring, and sums depend on their number.
th.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def isolated_data_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's own Minari root, with the cache next to it: tests never touch the user's home. Subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.setenv("SB3_DMPO_CACHE", str(folder / "cache"))
        yield folder / "minari"


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run an entry point in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # It writes to stderr when it is first imported, in whichever test that happens to be.
    with contextlib.suppress(ImportError):
        importlib.import_module("gymnasium_robotics")
    capsys.readouterr()

    def run(program: Callable[[list[str]], int], *argv: str) -> tuple[int, str, str]:
        code = program(list(argv))
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
