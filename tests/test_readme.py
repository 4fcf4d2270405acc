"""Every Python block of the README runs, in order, as typed (but for the number of updates)."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_readme_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) >= 3
    for block in found:
        # Thousands of updates only make the result good; a few show that the block runs.
        shortened = block.replace("3_000", "30").replace("eval_freq=1_000", "eval_freq=15")
        exec(compile(shortened, "README.md", "exec"), {})
    assert (tmp_path / "model.zip").is_file()


def test_readme_commands_exist() -> None:
    """Every make target and script that the README names is there, and every flag is known to our command line."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = set()
    for line in "\n".join(blocks("bash")).splitlines():
        words = shlex.split(line, comments=True)
        names |= set(words[:1])
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words[1]
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), words[1]
    assert names == {"make", "python"}
