"""``python -m sb3_dmpo.hub push model.zip user/name``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_dmpo.cli.errors import UsageError, exit_code
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError


def _run(argv: Sequence[str] | None) -> None:
    from sb3_dmpo.hub import push_to_hub, write_repository

    parser = argparse.ArgumentParser(prog="python -m sb3_dmpo.hub", description="Put a model on the Hugging Face Hub.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    push = commands.add_parser(
        "push", help="upload a model with a card: dataset, scores, command, picture of the sub-policies"
    )
    push.add_argument("model", type=Path, metavar="MODEL.zip")
    push.add_argument("repo_id", metavar="USER/NAME")
    push.add_argument("--command", help="what was typed to train it (default: what the run has written down)")
    push.add_argument("--message", default="Add model", help="message of the commit")
    push.add_argument("--folder", type=Path, help="write what would be uploaded into this folder, and stop")
    options = parser.parse_args(argv)
    try:
        if options.folder is not None:
            names = write_repository(options.model, options.folder, options.repo_id, options.command)
            print(f"{options.folder}: {', '.join(names)}")
        else:
            print(push_to_hub(options.model, options.repo_id, options.command, options.message))
    except (DamagedFileError, UnsafeFileError, ValueError) as error:
        raise UsageError(f"{options.model}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """
    Push models; faults become one line on stderr.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    return exit_code(lambda: _run(argv), "hub")
