"""Every Python block of the README runs, in order, as typed (but for the number of updates)."""

import re
import shlex
from pathlib import Path

import pytest

from sb3_dmpo.__main__ import VERBS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every command in a block."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def test_readme_is_short() -> None:
    assert len(TEXT.split()) <= 1_200


def test_readme_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        # Thousands of updates only make the result good; a few show that the block runs.
        exec(compile(block.replace("3_000", "30"), "README.md", "exec"), {})
    assert (tmp_path / "model.zip").is_file()
    assert re.search(r"mean return -?\d\.\d\d", capsys.readouterr().out)


def test_readme_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import hero

    assert hero.main(["-n", "20", "--output", str(tmp_path / "hero.png")]) == 0
    assert 50_000 < (tmp_path / "hero.png").stat().st_size < 400_000


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert "docs/images/hero.png" in targets and "CITATION.cff" in targets
    # What begins with ../.. is the workflow's page on GitHub.
    assert [target for target in targets if not target.startswith("../../") and not (ROOT / target).exists()] == []


def test_readme_commands_exist() -> None:
    """Every make target and verb that the README names is there; test_docs looks at the options."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = set()
    for words in commands("\n".join(blocks("bash"))):
        names.add(words[0])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words[1]
        elif words[0] == "sb3_dmpo":
            assert words[1] in VERBS, words[1]
    assert names == {"make", "pip", "sb3_dmpo"}
