"""What the tests of the command line share."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PLOT = "sb3_dmpo.plots.two_goals.plot_two_goals"


def touch(model: Any, path: Path, **options: Any) -> None:
    path.touch()


@pytest.fixture(scope="package", autouse=True)
def toy_undrawn() -> Iterator[Callable[..., None] | None]:
    """Runs on the toy leave an empty file for the picture, which takes longer than most of them; gives the real function."""
    with pytest.MonkeyPatch.context() as patch:
        original = None
        with contextlib.suppress(ImportError):
            from sb3_dmpo.plots import two_goals

            original = two_goals.plot_two_goals
            patch.setattr(PLOT, touch)
        yield original


@pytest.fixture
def toy_drawn(toy_undrawn: Callable[..., None] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test draw the toy."""
    if toy_undrawn is not None:
        monkeypatch.setattr(PLOT, toy_undrawn)


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of ``RUN``, which nobody disturbed; who writes into it takes a copy."""
    from tests.cli.test_resume import RUN, train

    folder = tmp_path_factory.mktemp("whole")
    assert train([*RUN, "-f", str(folder)]) == 0
    return folder


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of a run of ``TINY``; who writes into it takes a copy."""
    from tests.cli.test_train import TINY, train

    folder = tmp_path_factory.mktemp("tiny")
    assert train([*TINY, "-f", str(folder)]) == 0
    return folder
