"""Where the rules of a profile of Docker's form count: capabilities and kernels, and which rules may count at once.

Belongs here: the conditions as sets. Next door: `seccomp.resolve` asks them for one container, `lint_seccomp` for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shim.seccomp import resolve

Indexed = list[tuple[int, dict[str, Any]]]  # rules with their places in the profile
Kernel = tuple[int, int]

_ALL = (1 << len(resolve.BITS)) - 1
_LAST = (1 << 20, 0)  # after every kernel


class When(NamedTuple):
    """With the capabilities of `needs`, without those of `bars`, on kernels from `first` on and before `end`."""

    needs: int
    bars: int
    first: Kernel
    end: Kernel

    def counts(self, rule: dict[str, Any], host: str) -> bool:
        """Whether the rule whose conditions these are ever counts on this machine."""
        return resolve.applies(rule, self.needs, host, self.first)

    def meets(self, other: When) -> bool:
        """Whether two rules may count at once."""
        apart = (self.needs | other.needs) & (self.bars | other.bars)
        return not apart and max(self.first, other.first) < min(self.end, other.end)


def of(rule: dict[str, Any]) -> When:
    """The conditions of a checked rule, but for those on the machine."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    needs, bars = (sum(resolve.BITS[cap] for cap in {*side.get("caps", ())}) for side in (includes, excludes))
    return When(needs, bars, _kernel(includes, (0, 0)), _kernel(excludes, _LAST))


def largest(rules: Indexed, places: list[When], host: str) -> list[Indexed]:
    """The sets of rules that count together where one of `places` does and as much besides as may, each once and
    without what another has all of.
    """
    under = {(_ALL & ~place.bars, _before(place.end)) for place in places} | {(_ALL, _before(_LAST))}
    sets = {
        frozenset(index for index, rule in rules if resolve.applies(rule, mask, host, kernel)) for mask, kernel in under
    }
    kept: list[frozenset[int]] = []
    for one in sorted(sets, key=lambda some: (-len(some), sorted(some))):
        if not any(one <= other for other in kept):
            kept.append(one)
    return [[pair for pair in rules if pair[0] in one] for one in kept]


def _before(kernel: Kernel) -> Kernel:
    major, minor = kernel
    return (major, minor - 1) if minor else (major - 1, _LAST[0])


def _kernel(side: dict[str, Any], default: Kernel) -> Kernel:
    major, dot, minor = side.get("minKernel", "").partition(".")
    return (int(major), int(minor)) if dot else default
