"""``sb3_dmpo push model.zip user/name``."""

from collections.abc import Sequence
from pathlib import Path

from sb3_dmpo.cli.errors import Parser, UsageError
from sb3_dmpo.files.plain_text import FileError
from sb3_dmpo.files.save_util import path_to_read
from sb3_dmpo.hub import CARD, MADE_BY, model_file_name, push_to_hub, write_repository


def _check_folder(folder: Path, name: str) -> None:
    """
    Refuse a folder with other files, among which a README.md would be replaced.

    :param folder: where the repository is to be written
    :param name: what the model's zip is called there
    :raises UsageError: there is something in it that is not from ``push``, or is another model
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    card = folder / CARD
    if not card.is_file() or MADE_BY not in card.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"--folder {folder} holds other files: name a new folder, or one that push has written.")
    others = sorted(path.name for path in folder.glob("*.zip") if path.name != name)
    if others:
        raise UsageError(f"--folder {folder} is of another model ({', '.join(others)}): name a new folder.")


def run(argv: Sequence[str]) -> None:
    """
    Upload a model as the command line says.

    :param argv: arguments
    :raises UsageError: the file is no model's, or the folder not free
    """
    parser = Parser(
        prog="sb3_dmpo push",
        description="Upload a model with a card: dataset, scores, command, picture of the sub-policies.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.zip")
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--command", help="what was typed to train it (default: what the run has written down)")
    parser.add_argument("--message", default="Add model", help="message of the commit")
    parser.add_argument("--folder", type=Path, help="write what would be uploaded into this new folder, and stop")
    options = parser.parse_args(argv)
    try:
        if options.folder is not None:
            _check_folder(options.folder, model_file_name(path_to_read(options.model, ".zip")))
            names = write_repository(options.model, options.folder, options.repo_id, options.command)
            print(f"{options.folder}: {', '.join(names)}")
        else:
            print(push_to_hub(options.model, options.repo_id, options.command, options.message))
    except FileError:
        raise
    except ValueError as error:
        raise UsageError(f"{options.model}: {error}") from error
