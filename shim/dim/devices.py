"""Device nodes and the device cgroup. Order: ⊆ of what may be opened or made, and ⊆ of nodes.

The rules of a spec are an ordered list; they are folded into one of two forms: a list of what is allowed, or "all but
some". Where a denial cuts a wildcard in part, the whole wildcard goes: a fold may err only towards less.
Delegates add their defaults (null, zero, full, random, urandom, tty, ptmx, pts; runc also tun, useless without
NET_ADMIN) to whatever is written, so DEFAULTS belong to every value but BOTTOM. console (5:1) is not among them: it is
the host's; a container's /dev/console is a pty. Source: cgroup-v1/devices, runtime-spec config-linux.md "Devices".
"""

from __future__ import annotations

from shim.errors import Invalid
from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec

    Rule = tuple[str, int, int, str]  # type b or c, major, minor (-1: any), access letter
    Node = tuple[str, str, int, int]  # path, type, major, minor

NAME = "devices"
KEYS = ("linux.devices", "linux.resources.devices", "linux.netDevices")
ANY = -1
DEFAULTS = (
    ("c", 1, 3),  # null
    ("c", 1, 5),  # zero
    ("c", 1, 7),  # full
    ("c", 1, 8),  # random
    ("c", 1, 9),  # urandom
    ("c", 5, 0),  # tty
    ("c", 5, 2),  # ptmx
    ("c", 136, ANY),  # pts
)


class Devices(Value):
    """`all_but`: True where `rules` are denials of an otherwise open list; `rules`: (type, major, minor, letter);
    `nodes`: (path, type, major, minor) to be made, None for any; `links`: network devices taken from the host.
    """

    __slots__ = ("all_but", "rules", "nodes", "links")

    def __init__(
        self, all_but: bool, rules: frozenset[Rule], nodes: frozenset[Node] | None, links: frozenset[str] | None
    ) -> None:
        self.all_but = all_but
        self.rules = rules
        self.nodes = nodes
        self.links = links


STANDARD = frozenset((kind, major, minor, letter) for kind, major, minor in DEFAULTS for letter in "rwm")
TOP = Devices(True, frozenset(), None, None)
BOTTOM = Devices(False, frozenset(), frozenset(), frozenset())


def leq(a: Devices, b: Devices) -> bool:
    return _links_leq(a.links, b.links) and _nodes_leq(a, b) and _rules_leq(a, b)


def meet(a: Devices, b: Devices) -> Devices:
    if a.all_but and b.all_but:
        all_but, rules = True, _widest(a.rules | b.rules)
    elif a.all_but or b.all_but:
        denied, allowed = (a.rules, b.rules) if a.all_but else (b.rules, a.rules)
        all_but, rules = False, frozenset(rule for rule in allowed if not any(_overlap(rule, no) for no in denied))
    else:
        both = (_intersect(x, y) for x in a.rules for y in b.rules)
        all_but, rules = False, _widest(frozenset(rule for rule in both if rule))
    nodes = frozenset(node for node in _nodes(a, b) if _may_have(a, node) and _may_have(b, node))
    both_any = a.nodes is None and b.nodes is None
    links = b.links if a.links is None else a.links if b.links is None else a.links & b.links
    return Devices(all_but, rules, None if both_any else nodes, links)


def from_spec(spec: Spec, facts: Facts) -> Devices:
    all_but, rules = False, set(STANDARD)
    for entry in at(spec, KEYS[1], ()):
        all_but, rules = _fold(all_but, rules, entry)
    nodes = frozenset(_node(entry, facts) for entry in at(spec, KEYS[0], ()))
    return Devices(all_but, _widest(frozenset(rules)), nodes, frozenset(at(spec, KEYS[2], ())))


def from_policy(section: Section) -> Devices:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    added = section.get("add", ())
    rules = frozenset((d["type"], d["major"], d["minor"], letter) for d in added for letter in d.get("access", "rw"))
    return Devices(False, _widest(STANDARD | rules), None, frozenset())


def apply_to_spec(spec: Spec, value: Devices, facts: Facts) -> Spec:
    asked = from_spec(spec, facts)
    out = spec
    if (asked.all_but, asked.rules) != (value.all_but, value.rules):
        out = with_key(out, KEYS[1], _written(value))
    if asked.nodes != value.nodes and value.nodes is not None:
        kept = [entry for entry in at(spec, KEYS[0], ()) if _node(entry, facts) in value.nodes]
        out = with_key(out, KEYS[0], kept or None)
    if asked.links != value.links and value.links is not None:
        kept_links = {name: link for name, link in at(spec, KEYS[2], {}).items() if name in value.links}
        out = with_key(out, KEYS[2], kept_links or None)
    return out


def explain(asked: Devices, ceiling: Devices, granted: Devices) -> list[Decrease]:
    out = []
    if (asked.all_but, asked.rules) != (granted.all_but, granted.rules):
        why = "devices beyond the standard ones reach the host's hardware"
        lost = () if asked.all_but else sorted(_access(asked.rules - granted.rules).items())
        allow = _allow("/dev/…", *lost[0][0], lost[0][1]) if lost else 'devices = "top"' + REASON
        out.append(Decrease(KEYS[1], _shown(asked), _shown(granted), why, allow))
    if asked.nodes != granted.nodes:
        gone = sorted((asked.nodes or frozenset()) - (granted.nodes or frozenset()))
        shown = ", ".join(node[0] for node in gone[:8]) + (f" and {len(gone) - 8} more" if len(gone) > 8 else "")
        allow = _allow(*gone[0], "rw") if gone else 'devices = "top"' + REASON
        out.append(Decrease(KEYS[0], shown, "not made", "its node may not be opened", allow))
    if asked.links != granted.links:
        links = ", ".join(sorted((asked.links or frozenset()) - (granted.links or frozenset())))
        out.append(Decrease(KEYS[2], links, "not moved", "a network device of the host", 'devices = "top"' + REASON))
    return out


def refusals(asked: Devices, granted: Devices) -> list[Exception]:
    return []


def _fold(all_but: bool, rules: set[Rule], entry: dict[str, Any]) -> tuple[bool, set[Rule]]:
    """One more rule of a spec, applied to what the rules before it left."""
    allow, kind = entry.get("allow", False), entry.get("type") or "a"
    major, minor = (_number(entry, "major"), _number(entry, "minor"))
    access = entry.get("access") or "rwm"
    if kind not in ("a", "b", "c", "u", "p") or set(access) - set("rwm"):
        raise Invalid(NAME, KEYS[1], f"{kind} {access}", "type a, b or c and access of r, w, m", "correct the rule")
    kinds = ("b", "c") if kind == "a" else ("c" if kind == "u" else kind,)
    named = {(one, major, minor, letter) for one in kinds for letter in access}
    if kind == "a" and (major, minor) != (ANY, ANY):
        # The kernel's v1 controller ignores the numbers, crun's v2 program does not.
        raise Invalid(NAME, KEYS[1], f"type a with {major}:{minor}", "type a alone", "name b or c, or no numbers")
    if kind == "a" or (major == minor == ANY and len(named) == 6):
        return (True, set()) if allow else (False, set())
    if allow == all_but:
        return all_but, {rule for rule in rules if not any(_covers(one, rule) for one in named)}
    if allow:
        return False, rules | named
    return (True, rules | named) if all_but else (False, {r for r in rules if not any(_overlap(r, n) for n in named)})


def _number(entry: dict[str, Any], which: str) -> int:
    number = entry.get(which)
    return ANY if number is None or number < 0 else int(number)


def _node(entry: dict[str, Any], facts: Facts) -> Node:
    """A node as asked; of kind '?' where its path is no place for a device.

    runc binds the host's file of that path where mknod is denied to it (in a user namespace, by the device cgroup), so
    the path must be below /dev and lead to nothing on the host, or to this very device.
    """
    kind, path = entry.get("type", ""), entry.get("path", "")
    node = ("c" if kind == "u" else kind, entry.get("major", 0), entry.get("minor", 0))
    clean = path.startswith("/dev/") and ".." not in path.split("/")
    return (path, *(node if clean and facts.nodes.get(path, node) == node else ("?", *node[1:])))


def _covers(wide: Rule, rule: Rule) -> bool:
    return wide[0] == rule[0] and wide[3] == rule[3] and wide[1] in (ANY, rule[1]) and wide[2] in (ANY, rule[2])


def _intersect(a: Rule, b: Rule) -> Rule | None:
    if a[0] != b[0] or a[3] != b[3]:
        return None
    numbers = []
    for x, y in ((a[1], b[1]), (a[2], b[2])):
        if x != y and ANY not in (x, y):
            return None
        numbers.append(y if x == ANY else x)
    return a[0], numbers[0], numbers[1], a[3]


def _overlap(a: Rule, b: Rule) -> bool:
    return _intersect(a, b) is not None


def _widest(rules: frozenset[Rule]) -> frozenset[Rule]:
    """Without those that a wildcard among them covers: one form for one meaning."""
    wild = [rule for rule in rules if ANY in rule[1:3]]
    return frozenset(rule for rule in rules if not any(one != rule and _covers(one, rule) for one in wild))


def _rules_leq(a: Devices, b: Devices) -> bool:
    if a.all_but:
        return b.all_but and all(any(_covers(no, rule) for no in a.rules) for rule in b.rules)
    if b.all_but:
        return not any(_overlap(rule, no) for rule in a.rules for no in b.rules)
    return all(any(_covers(wide, rule) for wide in b.rules) for rule in a.rules)


def _may_have(value: Devices, node: Node) -> bool:
    """Whether `value` lets `node` be made: it is named, or its device may be read or written."""
    if value.nodes is not None:
        return node in value.nodes
    if node[1] not in ("b", "c"):
        return value.all_but and not value.rules
    wanted = [(node[1], node[2], node[3], letter) for letter in "rw"]
    if value.all_but:
        return not any(_overlap(one, no) for one in wanted for no in value.rules)
    return all(any(_covers(rule, one) for rule in value.rules) for one in wanted)


def _nodes(a: Devices, b: Devices) -> frozenset[Node]:
    return (a.nodes or frozenset()) | (b.nodes or frozenset())


def _nodes_leq(a: Devices, b: Devices) -> bool:
    if a.nodes is None:
        return b.nodes is None and _rules_leq(a, b)
    return all(_may_have(b, node) for node in a.nodes)


def _links_leq(a: frozenset[str] | None, b: frozenset[str] | None) -> bool:
    return b is None or (a is not None and a <= b)


def _access(rules: frozenset[Rule]) -> dict[tuple[str, int, int], str]:
    """(type, major, minor) -> its letters in the order rwm, sorted by device."""
    found: dict[tuple[str, int, int], str] = {}
    for kind, major, minor, letter in sorted(rules, key=lambda rule: (rule[:3], "rwm".index(rule[3]))):
        found[kind, major, minor] = found.get((kind, major, minor), "") + letter
    return found


def _written(value: Devices) -> list[dict[str, Any]]:
    """`value` as a spec's list: everything closed or open first, then one rule a device."""
    out: list[dict[str, Any]] = [{"allow": value.all_but, "access": "rwm"}]
    for (kind, major, minor), letters in _access(value.rules).items():
        rule: dict[str, Any] = {"allow": not value.all_but, "type": kind}
        if major != ANY:
            rule["major"] = major
        if minor != ANY:
            rule["minor"] = minor
        out.append({**rule, "access": letters})
    return out


def _allow(path: str, kind: str, major: int, minor: int, access: str) -> str:
    """The line for one device; a wildcard, or what is no device, has none but top."""
    if kind not in ("b", "c") or ANY in (major, minor):
        return 'devices = "top"' + REASON
    device = f'path = "{path}", type = "{kind}", major = {major}, minor = {minor}, access = "{access}"'
    return f"[devices] add = [{{ {device}{REASON} }}]"


def _shown(value: Devices) -> str:
    extra = _access(value.rules if value.all_but else value.rules - STANDARD)
    shown = ", ".join(f"{kind} {a}:{i} {letters}" for (kind, a, i), letters in extra.items()).replace(str(ANY), "*")
    if value.all_but:
        return f"all but {shown}" if shown else "all"
    return f"standard, {shown}" if shown else "standard"
