"""Every Python block of the documentation runs, page by page, as typed (but for the number of updates)."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from sb3_dmpo import ALGOS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.rst"))
#: Constructing and updating their networks of full size takes seconds.
SLOW = {f"algorithms/{name}.rst" for name in ("cql", "decision_transformer", "diffusion_ql", "lapo", "mix_awac")}


def blocks(page: str, language: str) -> list[str]:
    pattern = rf"^\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)"
    return [textwrap.dedent(block) for block in re.findall(pattern, (DOCS / page).read_text() + "\n", flags=re.MULTILINE)]


def test_every_algorithm_has_a_page() -> None:
    assert {f"algorithms/{name}.rst" for name in ALGOS} == {page for page in PAGES if "algorithms/" in page} - {
        "algorithms/index.rst"
    }
    assert all(blocks(f"algorithms/{name}.rst", "python") for name in ALGOS)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if blocks(page, "python")]
)
def test_python_blocks(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(blocks(page, "python"))
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("3_000", "4"), page, "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_exist(page: str) -> None:
    """Modules and options of the commands are known."""
    root = DOCS.parent
    for line in "\n".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"]:
            module = root / Path(*words[2].split("."))
            assert module.with_suffix(".py").is_file(), line
            algorithms = [words[i + 1] for i, word in enumerate(words) if word == "--algo"]
            assert set(algorithms) <= set(ALGOS), line
        else:
            assert not words or words[0] in ("minari", "make", "pip"), line


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    application = pytest.importorskip("sphinx.cmd.build")
    assert application.main(["-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]) == 0
    page = (tmp_path / "algorithms" / "dmpo.html").read_text()
    assert "<math" in page and "n_components" in page
