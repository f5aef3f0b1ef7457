"""Contenders that take turns: who takes part, in which order, and the comparison that comes out.

Belongs here: rounds and rows as such. Next door: `rows` says what is compared with what, `life` does one timed thing.
Within a group all contenders take turns, in an order thrown anew each round, so that a busy minute hits all alike.

A life that begins in the shadow of another one's end is up to 12 ms shorter than one on a quiet host: the kernel's
grace periods (RCU), for which it waits when it moves a process between control groups, are under way already. Whoever
thinks for 10 ms first, as we do, would step out of that shadow and seem 12 ms slower; so nobody begins in it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from conformance.bench import docker, place, stats
from conformance.bench.life import Container, Contender, Failed, fresh, timed

Samples = dict[str, list[float]]
AT_ONCE = 8  # lives of a crowd
QUIET = 0.1  # seconds without a container's birth or death, before one that is timed


@dataclass(frozen=True)
class Row:
    """One line of the table. `unit` is "x" (ratio), "ms" (difference of times), "rate" (ratio of lives a second), or
    "ns" or "count": ratios whose samples are nanoseconds or numbers instead of ms.
    """

    group: str
    work: str
    ours: str
    ours_ms: float
    theirs: str
    theirs_ms: float
    found: stats.Estimate
    unit: str
    limit: float | None
    samples: int

    @property
    def held(self) -> str:
        """Whether the limit was kept: yes, no, unclear, or nothing where there is no limit."""
        return stats.held(self.found, self.limit, at_least=self.unit == "rate")


@dataclass
class Bench:
    """A measurement in progress: contenders in their namespaces, and how often each does its work."""

    where: place.Place
    cast: dict[str, Contender]
    spec: dict[str, Any]
    rounds: int
    seed: int
    python: str
    library: Path
    dice: random.Random = field(init=False)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Throw the order of the contenders from the seed."""
        self.dice = random.Random(self.seed)

    def fresh(self, name: str, template: bytes | None = None) -> Container:
        """A new container of the contender `name`; the process moves to that contender's namespace."""
        contender = self.cast[name]
        self.where.enter(contender.place)
        return fresh(contender, template)

    def crowd(self, name: str, size: int) -> float:
        """ms a life of `size` containers of the contender `name`, AT_ONCE at a time."""
        containers = [self.fresh(name) for _ in range(size)]
        try:
            return timed(partial(_at_once, containers)) / size
        except Failed:
            for container in containers:
                container.discard()
            raise

    def interleave(self, tasks: Mapping[str, Callable[[], float]], rounds: int, pause: float = 0) -> Samples:
        """`rounds` samples (ms) of every task, after one that warms up and is thrown away; `pause` s before each.

        A task that fails is noted in `failures` and left out from then on; the others go on.
        """
        samples: Samples = {name: [] for name in tasks}
        for number in range(rounds + 1):
            order = list(samples)
            self.dice.shuffle(order)
            for name in order:
                time.sleep(pause)
                try:
                    took = tasks[name]()
                except Failed as failure:
                    self.failures.append(f"{name}: {failure}")
                    del samples[name]
                    continue
                if number:
                    samples[name].append(took)
        return samples

    def row(
        self, group: str, work: str, samples: Samples, ours: str, theirs: str, limit: float | None, unit: str = "x"
    ) -> Iterator[Row]:
        """The comparison of two contenders out of `samples`, none if one of them failed; for a rate, a sample is ms
        a life.
        """
        if not {ours, theirs} <= samples.keys():
            return
        mine, other = samples[ours], samples[theirs]
        if unit == "ms":
            found = stats.compare(mine, other, stats.difference, self.seed)
        elif unit == "rate":
            found = stats.compare(other, mine, stats.ratio, self.seed)
        else:
            found = stats.compare(mine, other, stats.ratio, self.seed)
        yield Row(group, work, ours, median(mine), theirs, median(other), found, unit, limit, len(mine))

    @contextmanager
    def sleeper(self) -> Iterator[Container]:
        """A running container that agentshim made, and that does nothing."""
        process = docker.process("sleep", "3600")
        container = self.fresh("shim", docker.template({**self.spec, "process": process}))
        try:
            container.create()
            container.start()
            yield container
        finally:
            container.discard()

    @property
    def delegate(self) -> str:
        """The program that agentshim hands on to in the first namespace."""
        return self.cast["runc"].program


def _at_once(containers: list[Container]) -> None:
    with ThreadPoolExecutor(AT_ONCE, initializer=place.own_cwd) as pool:
        list(pool.map(Container.engine_life, containers))


def granted(bench: Bench, asked: bytes | None = None) -> bytes:
    """What agentshim makes of Docker's bundle (or of `asked`), as a template: taken from a create that is undone."""
    container = bench.fresh("shim", asked)
    try:
        container.create()
        spec = json.loads((container.bundle / "config.json").read_bytes())
        for kind, hooks in spec.get("hooks", {}).items():  # a plan of ours is one container's
            spec["hooks"][kind] = [one for one in hooks if one["args"][0] != "agentshim-net"]
        told: bytes = json.dumps(spec).encode()
        return told.replace(container.name.encode(), docker.ID.encode())
    finally:
        container.discard()


def cast(shim: str, runc: str, crun: str | None, spec: dict[str, Any]) -> dict[str, Contender]:
    """All contenders but the one that runs our granted config, which only agentshim can tell (see `granted`)."""
    asked = docker.template(spec)
    bare = docker.template({**spec, "linux": {k: v for k, v in spec["linux"].items() if k != "seccomp"}})
    roots = Path("/run/docker/runtimes")
    ours = Contender("shim", shim, asked, roots / "shim", "runc")
    theirs = Contender("runc", runc, asked, roots / "runc", "runc")
    found = [ours, theirs]
    found += [replace(ours, name="shim-bare", template=bare), replace(theirs, name="runc-bare", template=bare)]
    if crun is not None:
        found.append(replace(ours, name="shim-crun", root=roots / "shim-crun", place="crun"))
        found.append(Contender("crun", crun, asked, roots / "crun", "crun"))
    return {one.name: one for one in found}
