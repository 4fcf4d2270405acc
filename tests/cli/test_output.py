"""What a terminal or a log cannot show never stops the program."""

import io
import sys

import pytest

from sb3_dmpo.cli.errors import UsageError, exit_code


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_in_other_encodings(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def program() -> None:
        print("100 ± 5 → 雪 ━━━")
        raise UsageError("no dataset 'my/雪-v0'")

    assert exit_code(program, "sb3_dmpo") == 2
    out.flush(), err.flush()
    assert out.buffer.getvalue().startswith(b"100 ") and b"no dataset" in err.buffer.getvalue()  # type: ignore[attr-defined]


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert exit_code(lambda: print("100"), "sb3_dmpo") == 0
