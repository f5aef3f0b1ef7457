"""Planted bugs, one or two a target: a fuzzer that does not find them is no proof of anything.

Each row changes our code in this process alone, as a careless change would. Next door: test_fuzz.py requires that each
is found.
"""

from __future__ import annotations

import _json
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from shim import argv, spec, wire
from shim.cold.policy import compile as cold
from shim.dim import capabilities, mounts
from shim.dim.capabilities import Capabilities
from tests.fuzz import native


def repeated_keys() -> None:
    wire._Context.object_pairs_hook = dict  # type: ignore[assignment]
    wire._scan = _json.make_scanner(wire._Context)  # type: ignore[arg-type]


def surrogates() -> None:
    wire._suspicious = lambda data: False


def first_root_wins() -> None:
    put = argv._put

    def first(given: dict[str, argv.Option], name: str, word: str, value: str) -> None:
        if name not in given or name in argv.LISTS:
            put(given, name, word, value)

    argv._put = first


def rewritten(module: ModuleType, old: str, new: str) -> None:
    """`module` with another text in its source."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the mutant's text is gone: {old}"
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), module.__dict__)


def dashes_at_the_end() -> None:
    """What canonical() did before it knew of `ps -- --option`: found by this fuzzer."""
    rewritten(argv, "if dashed:", "if False:")


def any_case() -> None:
    """A key of another case is taken for an unknown one."""
    rewritten(spec, "if known.casefold() == folded:", "if False:")


def bounding_kept() -> None:
    """A meet that forgets a set, and an order that does not see it: only the oracle can."""

    def meet(a: Capabilities, b: Capabilities) -> Capabilities:
        sets = tuple(x & y for x, y in zip(a.sets[1:], b.sets[1:], strict=True))
        return Capabilities((a.sets[0], *sets), a.gain and b.gain)

    def leq(a: Capabilities, b: Capabilities) -> bool:
        return all(x & ~y == 0 for x, y in zip(a.sets[1:], b.sets[1:], strict=True)) and a.gain <= b.gain

    capabilities.meet, capabilities.leq = meet, leq


def read_only_is_writable() -> None:
    """A policy's word taken for another: whatever is made of it agrees with itself."""
    from_policy = mounts.from_policy

    def lax(section: Any) -> mounts.Mounts:
        return from_policy({**section, "volumes": "rw"} if isinstance(section, dict) else section)

    mounts.from_policy = lax


def no_host_limit() -> None:
    cold.excess = lambda sections, limit: []


def exec_passes() -> None:
    native.CHANGES.append(('"features", "spec",', '"features", "exec",'))


def padding_of_anything() -> None:
    native.CHANGES.append(("        if (bytes[i])\n", "        if (0)\n"))


def any_delegate() -> None:
    native.CHANGES.append(("return !*delegate || !delegates || has(delegates, *delegate) ? 0 : -EINVAL;", "return 0;"))


# (target, mutant): what it does; and how many inputs suffice to find it, from the seeds and with seed 1.
MUTANTS: dict[tuple[str, str], tuple[Callable[[], None], int]] = {
    ("wire", "repeated-keys"): (repeated_keys, 4000),
    ("wire", "surrogates"): (surrogates, 4000),
    ("argv", "first-root-wins"): (first_root_wins, 8000),
    ("argv", "dashes-at-the-end"): (dashes_at_the_end, 8000),
    ("spec", "any-case"): (any_case, 4000),
    ("plan", "bounding-kept"): (bounding_kept, 500),
    ("plan", "read-only-is-writable"): (read_only_is_writable, 1000),
    ("policy", "no-host-limit"): (no_host_limit, 1200),
    ("launcher", "exec-passes"): (exec_passes, 8000),
    ("launcher", "any-delegate"): (any_delegate, 8000),
    ("hook", "padding-of-anything"): (padding_of_anything, 8000),
}
