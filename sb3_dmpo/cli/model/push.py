"""``sb3_dmpo push model.zip user/name``."""

from collections.abc import Sequence
from pathlib import Path

from sb3_dmpo.cli.errors import Parser, UsageError
from sb3_dmpo.files.plain_text import FileError
from sb3_dmpo.hub import push_to_hub, write_repository


def run(argv: Sequence[str]) -> None:
    """
    Upload a model as the command line says.

    :param argv: arguments
    :raises UsageError: the file is no model's
    """
    parser = Parser(
        prog="sb3_dmpo push",
        description="Upload a model with a card: dataset, scores, command, picture of the sub-policies.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.zip")
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--command", help="what was typed to train it (default: what the run has written down)")
    parser.add_argument("--message", default="Add model", help="message of the commit")
    parser.add_argument("--folder", type=Path, help="write what would be uploaded into this folder, and stop")
    options = parser.parse_args(argv)
    try:
        if options.folder is not None:
            names = write_repository(options.model, options.folder, options.repo_id, options.command)
            print(f"{options.folder}: {', '.join(names)}")
        else:
            print(push_to_hub(options.model, options.repo_id, options.command, options.message))
    except FileError:
        raise
    except ValueError as error:
        raise UsageError(f"{options.model}: {error}") from error
