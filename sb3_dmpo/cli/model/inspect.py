"""``sb3_dmpo inspect model.zip``."""

import textwrap
from collections.abc import Sequence

from sb3_dmpo.cli.errors import Parser
from sb3_dmpo.hub.summary import read_summary, summary_lines

_NAME_WIDTH, _TEXT_WIDTH = 14, 100


def run(argv: Sequence[str]) -> None:
    """
    Describe zips.

    :param argv: arguments
    :raises DamagedFileError: a file is no model's, or not complete
    :raises UnsafeFileError: it holds what no model holds
    """
    parser = Parser(
        prog="sb3_dmpo inspect",
        description="Say what is inside a model's zip: algorithm, dataset, updates, scores, spaces. Nothing is unpickled.",
    )
    parser.add_argument("files", nargs="+", metavar="MODEL.zip")
    for i, file in enumerate(parser.parse_args(argv).files):
        lines = summary_lines(read_summary(file))
        if i > 0:
            print()
        for name, text in lines:
            print(textwrap.fill(f"{name:<{_NAME_WIDTH}}{text}", _TEXT_WIDTH, subsequent_indent=" " * _NAME_WIDTH))
