"""Every Python block of the documentation runs, page by page, as typed (but for the number of updates)."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sb3_dmpo import ALGOS
from sb3_dmpo.__main__ import VERBS
from tests import test_readme as readme

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.rst"))
#: Constructing and updating their networks of full size takes seconds.
SLOW = {f"algorithms/{name}.rst" for name in ("cql", "decision_transformer", "diffusion_ql", "lapo", "maple", "mix_awac")}
SLOW |= {"deployment.rst"}


def blocks(page: str, language: str) -> list[str]:
    pattern = rf"^\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)"
    return [textwrap.dedent(block) for block in re.findall(pattern, (DOCS / page).read_text() + "\n", flags=re.MULTILINE)]


def test_every_algorithm_has_a_page() -> None:
    assert {f"algorithms/{name}.rst" for name in ALGOS} == {page for page in PAGES if "algorithms/" in page} - {
        "algorithms/index.rst"
    }
    assert all(blocks(f"algorithms/{name}.rst", "python") for name in ALGOS)


def test_every_verb_is_described() -> None:
    text = (DOCS / "cli.rst").read_text()
    assert [verb for verb in VERBS if f"* - ``{verb}``" not in text] == []


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if blocks(page, "python")]
)
def test_python_blocks(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(blocks(page, "python"))
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    shortened = code.replace("3_000", "4").replace("eval_freq=1_000", "eval_freq=2")
    exec(compile(shortened, page, "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_exist(page: str) -> None:
    """Verbs and algorithms of the commands are known."""
    for words in readme.commands("\n".join(blocks(page, "bash"))):
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[0] == "sb3_dmpo":
            assert words[1] in VERBS, words
            assert {words[i + 1] for i, word in enumerate(words) if word == "--algo"} <= {*ALGOS, "sac"}, words
        elif words[0] == "python":
            assert (DOCS.parent / words[1]).is_file(), words
        else:
            assert words[0] in ("minari", "make", "pip"), words


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_options_exist(verb: str) -> None:
    """Every option that README and documentation give to a verb is in its help."""
    everything = "\n".join([*readme.blocks("bash"), *(block for page in PAGES for block in blocks(page, "bash"))])
    words = [word for command in readme.commands(everything) if command[:2] == ["sb3_dmpo", verb] for word in command]
    # A number like -1 is a value.
    used = {word for word in words if word.startswith("-") and not word[1:].isdigit()}
    run = subprocess.run([sys.executable, "-m", "sb3_dmpo", verb, "--help"], capture_output=True, text=True, check=True)
    assert {option for option in used if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", run.stdout)} == set()


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    application = pytest.importorskip("sphinx.cmd.build")
    assert application.main(["-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]) == 0
    page = (tmp_path / "algorithms" / "dmpo.html").read_text()
    assert "<math" in page and "n_components" in page
