"""Contenders measured in turn: A B C, A B C, ..., so that a noisy moment hits all of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing.server import ROOT, Server

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OURS, PEERS = "benchmarks.timing.ours", "benchmarks.timing.peers"


@dataclass(frozen=True)
class Effort:
    """
    How long to measure.

    :param seconds: processor seconds of one block
    :param repeats: blocks of every contender
    :param warm_up: updates (or calls) before anything is measured
    """

    seconds: float = 2.0
    repeats: int = 7
    warm_up: int = 30


QUICK = Effort(0.3, 3, 4)


@dataclass
class Contender:
    """
    What is measured.

    :param server: process that runs it
    :param name: unique name in that process
    :param n: updates (or calls) of one block
    :param cpu: units per processor second, one per block
    :param wall: units per second, one per block
    :param values: what the contender itself has measured, one per block
    """

    server: Server
    name: str
    n: int = 1
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def run(self, n: int) -> dict[str, float]:
        """
        Processor and wall seconds of ``n`` units.

        :param n: how many
        """
        return self.server.ask(do="run", name=self.name, n=n)

    def calibrate(self, effort: Effort, wall: bool = False) -> None:
        """
        Warm up and choose the length of a block.

        :param effort: how long to measure
        :param wall: whether seconds are those of the clock
        """
        self.run(effort.warm_up)
        n, seconds = 4, 0.0
        while seconds < 0.1 * effort.seconds:
            n *= 2
            seconds = self.run(n)["wall" if wall else "cpu"]
        self.n = max(2, math.ceil(n * effort.seconds / seconds))

    def measure(self) -> None:
        """One block."""
        answer = self.run(self.n)
        self.cpu.append(self.n / max(answer["cpu"], 1e-9))
        self.wall.append(self.n / answer["wall"])
        if "value" in answer:
            self.values.append(answer["value"])


class Arena:
    """
    The processes of one comparison.

    :param threads: threads of torch
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.servers: dict[str, Server] = {}

    def enter(self, name: str, module: str, factory: str, **options: Any) -> Contender:
        """
        Build a contender.

        :param name: its name
        :param module: module with the factory
        :param factory: name of the factory
        :param options: its arguments
        """
        if module not in self.servers:
            python = {"python": str(PEERS_PYTHON)} if module == PEERS else {}
            self.servers[module] = Server(module, threads=self.threads, **python)
        server = self.servers[module]
        server.ask(do="build", name=name, factory=factory, options=options)
        return Contender(server, name)

    def close(self) -> None:
        """End the processes."""
        for server in self.servers.values():
            server.close()


@contextmanager
def arena(threads: int = 1) -> Iterator[Arena]:
    """
    Processes that end with the block.

    :param threads: threads of torch
    """
    found = Arena(threads)
    try:
        yield found
    finally:
        found.close()


def in_turn(contenders: list[Contender], effort: Effort, wall: bool = False) -> None:
    """
    Measure all contenders, block after block.

    :param contenders: what is measured
    :param effort: how long
    :param wall: whether blocks are sized by the clock, for work on another device
    """
    for contender in contenders:
        contender.calibrate(effort, wall)
    for _ in range(effort.repeats):
        for contender in contenders:
            contender.measure()


def has_peers(path: Path = PEERS_PYTHON) -> bool:
    """
    Whether ``make peers`` has been run.

    :param path: interpreter of the peers
    """
    return path.exists()
