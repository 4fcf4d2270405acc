"""Settings of the documentation; ``make docs`` builds it."""

from pathlib import Path

from docutils.nodes import NodeVisitor, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

project = "sb3_dmpo"
copyright = "the sb3_dmpo developers, MIT licence"
release = (Path(__file__).parent.parent / "sb3_dmpo" / "version.txt").read_text(encoding="utf-8").strip()

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sb3_dmpo {release}"
html_static_path = ["static"]
html_css_files = ["formulas.css"]
html_math_renderer = "mathml"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
pygments_style = "friendly"


def visit_math(visitor: NodeVisitor, node) -> None:
    """Write a formula as MathML, which browsers show without any script from elsewhere."""
    is_block = node.tagname == "math_block"
    formula = tex2mathml(node.astext(), as_block=is_block)
    visitor.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
