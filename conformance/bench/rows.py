"""What is compared with what: the rows of the table, each a few lines, with the limits that the project has set itself.

Belongs here: the work of each group. Next door: `turns` orders it, `life` does one timed thing, `report` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from conformance.bench import docker, network, network_lab, network_packets, place, seccomp
from conformance.bench.calls import arguments
from conformance.bench.life import Container, Failed, timed
from conformance.bench.turns import AT_ONCE, QUIET, Bench, Row, Samples


def looks(bench: Bench) -> Iterator[Row]:
    """state and kill: the same running container, asked through agentshim and directly."""
    with bench.sleeper() as container:
        for verb, args in (("state", ()), ("kill", ("WINCH",))):
            call = partial(container.call, verb, container.name, *args)
            tasks = {"shim": partial(timed, call), "runc": partial(timed, partial(call, program=bench.delegate))}
            samples = bench.interleave(tasks, bench.rounds * 12)  # 5 % of 4 ms: many
            yield from bench.row("looks", f"`{verb}`", samples, "shim", "runc", 1.05)


def steps(bench: Bench) -> Iterator[Row]:
    """start and delete of containers that agentshim created, through agentshim and directly."""
    deletes: Samples = {"shim": [], "runc": []}

    def one(name: str, program: str | None) -> float:
        container = bench.fresh("shim")
        try:
            container.create()
            took = timed(lambda: container.call("start", container.name, program=program))
            container.wait()
            deletes[name].append(timed(lambda: container.call("delete", container.name, program=program)))
            return took
        finally:
            container.discard()

    tasks = {"shim": partial(one, "shim", None), "runc": partial(one, "runc", bench.delegate)}
    starts = bench.interleave(tasks, bench.rounds * 3)
    yield from bench.row("steps", "`start`", starts, "shim", "runc", 1.05)
    warm = {name: deletes[name][1:] for name in starts}
    yield from bench.row("steps", "`delete`", warm, "shim", "runc", 1.05)


def lives(bench: Bench) -> Iterator[Row]:
    """Whole lives of /bin/true, in one call and in an engine's four."""
    yield from _lives(bench, "")


def expedited(bench: Bench) -> Iterator[Row]:
    """The same where the kernel hurries its grace periods (rcu_expedited): what is left is work, ours and theirs."""
    with place.expedited():
        yield from _lives(bench, ", expedited")


def _lives(bench: Bench, where: str) -> Iterator[Row]:
    def one(name: str, how: str) -> float:
        container = bench.fresh(name)
        try:
            return timed(container.run if how == "run" else container.engine_life)
        except Failed:
            container.discard()
            raise

    apart = {network_lab.OURS, network_lab.CONFINED, network_lab.EMPTY}
    for how, title in (("run", "life, `run`"), ("engine", "life, `create` … `delete`")):
        # Configurations in turn would measure compiling them: those with a network have groups of their own.
        tasks = {name: partial(one, name, how) for name in bench.cast if name not in apart}
        samples = bench.interleave(tasks, bench.rounds, QUIET)
        title += where
        yield from bench.row("lives", title, samples, "shim", "runc", 1.10)
        yield from bench.row("lives", title, samples, "shim", "runc-granted", 1.35)
        if "shim-crun" in bench.cast:
            yield from bench.row("lives", title, samples, "shim-crun", "runc", 0.80)
            yield from bench.row("lives", title, samples, "crun", "runc", None)
        yield from bench.row("lives", title + ", no seccomp", samples, "shim-bare", "runc-bare", None)


def creates(bench: Bench) -> Iterator[Row]:
    """create alone, as the milliseconds that agentshim adds to the delegate's create of the same bundle."""

    def one(name: str, before: Callable[[], None] | None = None, template: Callable[[], bytes] | None = None) -> float:
        container = bench.fresh(name, template() if template else None)
        try:
            if before:
                before()
            return timed(container.create)
        finally:
            container.discard()

    numbers = iter(range(1 << 30))

    def unseen() -> bytes:
        return docker.template(docker.rare(bench.spec, next(numbers)))

    everyone = ("shim", "runc", "runc-granted", "shim-crun", "crun")
    tasks = {name: partial(one, name) for name in everyone if name in bench.cast}
    samples = bench.interleave(tasks, bench.rounds, QUIET)
    yield from bench.row("creates", "`create`", samples, "shim", "runc", 15, "ms")
    yield from bench.row("creates", "`create`", samples, "shim", "runc-granted", None, "ms")
    if "shim-crun" in samples:
        yield from bench.row("creates", "`create`", samples, "shim-crun", "crun", 15, "ms")
    few = max(3, bench.rounds // 3)
    tasks = {name: partial(one, name, template=unseen) for name in ("shim", "runc")}
    samples = bench.interleave(tasks, few, QUIET)
    yield from bench.row("creates", "first `create` of a seccomp profile", samples, "shim", "runc", None, "ms")
    tasks = {"shim": partial(one, "shim", before=place.forget_state), "runc": partial(one, "runc")}
    samples = bench.interleave(tasks, few, QUIET)
    yield from bench.row("creates", "first `create` after a boot", samples, "shim", "runc", None, "ms")


def crowd(bench: Bench) -> Iterator[Row]:
    """Lives 8 at a time, in batches that take turns; a sample is the ms a life of one batch."""
    batches = 5 if bench.rounds >= 10 else 3
    size = min(40, 8 * bench.rounds)

    samples = bench.interleave({name: partial(bench.crowd, name, size) for name in ("shim", "runc")}, batches)
    yield from bench.row("crowd", f"{batches * size} lives, {AT_ONCE} at a time", samples, "shim", "runc", 0.85, "rate")


def execs(bench: Bench) -> Iterator[Row]:
    """exec of /bin/true as containerd's shim calls it, until that process has ended."""
    with bench.sleeper() as container:

        def one(program: str | None) -> float:
            args, _ = arguments("exec", container)  # written anew: agentshim may rewrite it
            return timed(lambda: _exec(container, args, program))

        tasks = {"shim": partial(one, None), "runc": partial(one, bench.delegate)}
        samples = bench.interleave(tasks, bench.rounds, QUIET)
        yield from bench.row("execs", "`exec`", samples, "shim", "runc", None)
        yield from bench.row("execs", "`exec`", samples, "shim", "runc", None, "ms")


def updates(bench: Bench) -> Iterator[Row]:
    """update of limits on stdin, as Docker sends them."""
    with bench.sleeper() as container:
        args, limits = arguments("update", container)
        call = partial(container.call, *args, stdin=str(limits))
        tasks = {"shim": partial(timed, call), "runc": partial(timed, partial(call, program=bench.delegate))}
        samples = bench.interleave(tasks, bench.rounds)
        yield from bench.row("updates", "`update`", samples, "shim", "runc", None)
        yield from bench.row("updates", "`update`", samples, "shim", "runc", None, "ms")


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "looks": looks,
    "steps": steps,
    "lives": lives,
    "expedited": expedited,
    "creates": creates,
    "crowd": crowd,
    "execs": execs,
    "updates": updates,
    "seccomp": seccomp.seccomp,
    "networks": network.networks,
    "throughput": network_packets.throughput,
}


def _exec(container: Container, args: list[str], program: str | None) -> None:
    container.call(*args, program=program)
    container.wait("exec.pid")
