"""The verbs of the command line as functions of their arguments, in this process."""

from collections.abc import Sequence
from functools import partial

from sb3_dmpo.__main__ import main


def _verb(name: str, argv: Sequence[str]) -> int:
    return main([name, *argv])


train, enjoy, sweep, collect = (partial(_verb, name) for name in ("train", "enjoy", "sweep", "collect"))
describe, convert, inspect, push = (partial(_verb, name) for name in ("describe", "convert", "inspect", "push"))
