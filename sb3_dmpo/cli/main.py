"""Entry points of the command line. They can be imported where rl_zoo3 is missing, to say so."""

from collections.abc import Sequence

from sb3_dmpo.cli.errors import EXIT_FAILURE, exit_code


def train(argv: Sequence[str] | None = None) -> int:
    """
    Train as the command line says; faults become one line on stderr.

    :param argv: arguments; None: those of the process
    :return: exit code
    """

    def program() -> None:
        from sb3_dmpo.cli.train.command import run

        run(argv)

    return exit_code(program, "train.py")


def enjoy(argv: Sequence[str] | None = None) -> int:
    """
    Watch and score a trained model as the command line says; faults become one line on stderr.

    :param argv: arguments; None: those of the process
    :return: exit code
    """

    def program() -> None:
        from sb3_dmpo.cli.enjoy.command import run

        run(argv)

    return exit_code(program, "enjoy.py")


def sweep(argv: Sequence[str] | None = None) -> int:
    """
    Do a grid of runs; faults become one line on stderr.

    :param argv: arguments; None: those of the process
    :return: exit code, not 0 if a run has failed
    """
    failed: list[int] = []

    def program() -> None:
        from sb3_dmpo.cli.sweep.command import run

        failed.append(run(argv))

    return exit_code(program, "sweep.py") or min(sum(failed), EXIT_FAILURE)


def collect(argv: Sequence[str] | None = None) -> int:
    """
    Make a dataset of an agent or a replay buffer; faults become one line on stderr.

    :param argv: arguments; None: those of the process
    :return: exit code
    """

    def program() -> None:
        from sb3_dmpo.cli.data.collect import run

        run(argv)

    return exit_code(program, "collect.py")
