"""The one door of the command line: ``sb3_dmpo VERB``, or ``python -m sb3_dmpo VERB`` without the console script."""

import importlib
import sys
from collections.abc import Sequence

import sb3_dmpo
from sb3_dmpo.cli.errors import UsageError, exit_code, suggest

#: What can be done: where its ``run(argv)`` is, and what it does.
VERBS: dict[str, tuple[str, str]] = {
    "train": ("sb3_dmpo.cli.train.command", "train an algorithm on a dataset, evaluate it and save it"),
    "enjoy": ("sb3_dmpo.cli.enjoy.command", "watch, score and film a trained model"),
    "sweep": ("sb3_dmpo.cli.sweep.command", "do a grid of runs, on this machine or on a SLURM cluster"),
    "collect": ("sb3_dmpo.cli.data.collect", "make a dataset of what an agent does, or of a replay buffer"),
    "describe": ("sb3_dmpo.cli.data.describe", "what a dataset is like, and whether DMPO is likely to help"),
    "convert": ("sb3_dmpo.cli.data.convert", "make a Minari dataset of an HDF5 file of the original D4RL"),
    "inspect": ("sb3_dmpo.cli.model.inspect", "what is inside a model's zip; nothing is unpickled"),
    "push": ("sb3_dmpo.cli.model.push", "put a model on the Hugging Face Hub, with a card"),
}


def usage() -> str:
    """What ``--help`` says."""
    verbs = "\n".join(f"  {verb:<10}{what}" for verb, (_, what) in VERBS.items())
    return (
        f"usage: sb3_dmpo VERB [options]\n\nOffline reinforcement learning for Stable-Baselines3.\n\nverbs:\n{verbs}\n\n"
        "sb3_dmpo VERB --help says what a verb takes; --version which version this is."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """
    Do what the command line says; faults become one line on stderr.

    :param argv: a verb and its arguments; None: those of the process
    :return: exit code
    """
    verb, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "--version"):
        print(sb3_dmpo.__version__ if verb == "--version" else usage())
        return 0

    def program() -> int | None:
        if verb not in VERBS:
            raise UsageError(f"There is no verb {verb!r}. {suggest(verb, VERBS)}")
        for argument in arguments:
            # Python takes other bytes for surrogates, which no log and no results file can hold.
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise UsageError(f"The argument {argument!r} is no text in UTF-8: name it otherwise, or set PYTHONUTF8=1.")
        # Only now: some verbs need packages that others do without.
        code: int | None = importlib.import_module(VERBS[verb][0]).run(arguments)
        return code

    return exit_code(program, f"sb3_dmpo {verb}" if verb in VERBS else "sb3_dmpo")


if __name__ == "__main__":
    sys.exit(main())
