"""Two locks on every door: which dimensions shut it, computed from the policies' own values.

A lock is a dimension that would keep the door shut if all others were open: capabilities that are not held, calls that
the filter grants with none of the door's arguments, namespaces, paths, devices, mounts. Belongs here: asking the
dimensions. Next door: `doors` is the data; a test holds each door of each built-in policy to two locks or a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shim import policy, product
from shim.cold.policy import compile as cold
from shim.cold.policy.doors import DOORS, Door
from shim.cold.seccomp import libseccomp
from shim.dim import capabilities, devices, invocation, mounts, namespaces, network, paths, seccomp, user
from shim.lattice import names_leq
from shim.seccomp import cubes
from shim.seccomp.vocabulary import LOW

if TYPE_CHECKING:
    from shim.product import Product

ORDER = ("locked", "agent", "web", "dev")
ENOUGH = 2
_CALL = re.compile(r"(\w+)(?:\(([^)]*)\))?")
_NODE = re.compile(r"([bc])(\d+|\*):(\d+|\*)")


def value_of(name: str, config: policy.Config | None = None) -> Product:
    """A policy's value in every dimension, as a container that asks for everything would be granted it."""
    form = cold.form_of(cold.resolve(name, config or policy.Config({})))
    return product.from_policy(form["sections"])


def locks(value: Product) -> dict[str, tuple[str, ...]]:
    """For each door, the dimensions that shut it."""
    filters = Filters(value)
    return {door.name: tuple(name for name, shut in LOCKS if shut(door, value, filters)) for door in DOORS}


def weak(name: str, found: dict[str, tuple[str, ...]]) -> list[str]:
    """Doors of the built-in policy `name` with fewer than two locks and no reason, or others than the reason has."""
    out = []
    for door in DOORS:
        known = next((one.locks.split() for one in door.few if name in one.policies.split()), None)
        if list(found[door.name]) != known if known is not None else len(found[door.name]) < ENOUGH:
            out.append(f"{door.name}: {', '.join(found[door.name]) or 'open'}")
    return out


def table(names: Sequence[str] = (), config: policy.Config | None = None) -> str:
    """The doors as a Markdown table with a column for each policy, and the reasons for fewer than two locks."""
    names = names or ORDER
    columns = {name: locks(value_of(name, config)) for name in names}
    lines = [["door", *(f"`{name}`" for name in columns)], ["---"] * (1 + len(columns))]
    lines += [[door.name, *(_cell(found[door.name]) for found in columns.values())] for door in DOORS]
    rows = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    both = {door for name in names for door in one_grant(value_of(name, config))}
    joined = ", ".join(door.name for door in DOORS if door.name in both)
    notes = _reasons(list(columns)) + [f"one grant opens both locks: {joined}"] * bool(joined)
    return rows + "".join(f"\n- {note}" for note in notes) + "\n"


def one_grant(value: Product) -> list[str]:
    """Doors whose filter opens with the capability. One that is won later, by a fault, still meets the filter."""
    granted = Filters({**value, capabilities.NAME: capabilities.TOP})
    both = [name for name, found in locks(value).items() if {capabilities.NAME, seccomp.NAME} <= set(found)]
    return [door.name for door in DOORS if door.name in both and not _seccomp(door, value, granted)]


def _cell(found: tuple[str, ...]) -> str:
    return ", ".join(found) + (" alone" if len(found) == 1 else "") if found else "open"


def _reasons(names: list[str]) -> list[str]:
    """A line for each reason that concerns one of these policies."""
    out = []
    for door in DOORS:
        for few in door.few:
            named = [name for name in few.policies.split() if name in names]
            if named:
                out.append(f"{door.name} ({', '.join(named)}): {few.why}")
    return out


class Filters:
    """What a policy lets a container call that asks for no filter, under all capabilities that it may grant: the most
    that any container of it can have, as cubes of arguments.
    """

    def __init__(self, value: Product) -> None:
        ceiling = seccomp.resolve(value[seccomp.NAME], value[capabilities.NAME].sets[0])
        self.model = None if ceiling.is_top else seccomp.meet(seccomp.TOP, ceiling).model

    def deny(self, word: str) -> bool:
        """Whether no vector of `name` (all of them) or `name(…)` passes, under any ABI that has such a call."""
        if self.model is None:
            return False
        name, args = _CALL.findall(word)[0]
        if all(libseccomp.number(name, abi) < 0 for abi in self.model.archs & set(libseccomp.TOKENS)):
            return True
        cubes.budget()
        return not cubes.overlap(self.model.calls.get(name, self.model.rest)[1], (cube(args),))


def cube(args: str) -> cubes.Cube:
    """The vectors that a door's word means: as doors.Door has it."""
    out = []
    for index, word in enumerate(args.split(",") if args else ()):
        mask, masked, value = word.rpartition(":")
        if word != "_":
            out.append((index, int(mask, 0) if masked else LOW, int(value, 0)))
    return tuple(out)


def _capabilities(door: Door, value: Product, filters: Filters) -> bool:
    held = 0
    for one in value[capabilities.NAME].sets:
        held |= one
    barred = bool(door.caps) and not held & capabilities.mask_of(door.caps.split())
    return barred or (door.gain and not value[capabilities.NAME].gain)


def _seccomp(door: Door, value: Product, filters: Filters) -> bool:
    return bool(door.calls) and all(map(filters.deny, door.calls.split()))


def _namespaces(door: Door, value: Product, filters: Filters) -> bool:
    there = dict(zip(namespaces.KINDS, value[namespaces.NAME].kinds))
    return bool(door.kinds) and all(there[kind] != namespaces.HOST for kind in door.kinds.split())


def _paths(door: Door, value: Product, filters: Filters) -> bool:
    held = value[paths.NAME]
    hidden = all(names_leq(frozenset({one}), held.masked) for one in (door.masked + " " + door.readonly).split())
    fixed = all(names_leq(frozenset({one}), held.readonly) for one in door.readonly.split())
    return bool(door.masked or door.readonly) and (hidden or (fixed and not door.masked))


def _devices(door: Door, value: Product, filters: Filters) -> bool:
    """None of the nodes' devices may be opened, for reading or for writing."""
    numbers = [[devices.ANY if one == "*" else int(one) for one in found[1:]] for found in _NODE.findall(door.nodes)]
    kinds = [found[0] for found in _NODE.findall(door.nodes)]
    asked = frozenset((kind, *pair, letter) for kind, pair in zip(kinds, numbers) for letter in "rw")
    left = devices.meet(devices.Devices(False, asked, frozenset(), frozenset()), value[devices.NAME])
    return bool(door.nodes) and not left.rules


def _mounts(door: Door, value: Product, filters: Filters) -> bool:
    return bool(door.mounts) and all(_taken(word, value[mounts.NAME]) for word in door.mounts.split())


def _taken(word: str, held: Any) -> bool:
    """Whether a class of mounts is refused, or without the right that follows its name."""
    kind, _, right = word.partition("-")
    given = [held.rights[mounts.CLASSES.index(kind)], *(rights for _, rights in held.places if kind == "volume")]
    return all(one == mounts.REFUSED or (right != "" and not one & _bits(right)) for one in given)


def _bits(right: str) -> int:
    bit: int = getattr(mounts, right)
    return bit | bit << mounts.BELOW if bit & mounts.FLAGS else bit


def _user(door: Door, value: Product, filters: Filters) -> bool:
    return door.root and user.leq(value[user.NAME], user.NON_ROOT)


def _invocation(door: Door, value: Product, filters: Filters) -> bool:
    return bool(door.flags) and not value[invocation.NAME].flags & frozenset(door.flags.split())


def _network(door: Door, value: Product, filters: Filters) -> bool:
    """Filtered at all is enough: link-local addresses are never granted then."""
    return door.network and not value[network.NAME].open


LOCKS: tuple[tuple[str, Callable[[Door, Product, Filters], bool]], ...] = (
    (capabilities.NAME, _capabilities),
    (seccomp.NAME, _seccomp),
    (namespaces.NAME, _namespaces),
    (paths.NAME, _paths),
    (devices.NAME, _devices),
    (mounts.NAME, _mounts),
    (user.NAME, _user),
    (invocation.NAME, _invocation),
    (network.NAME, _network),
)
