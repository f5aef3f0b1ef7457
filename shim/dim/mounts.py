"""Mounts and the root file system: what each one shows of the host, and what may be done through it.

A spec's value is a list of mounts, each with a class (what its source is) and rights (bits). A policy's value is a
table of classes to the rights allowed, with exceptions for destinations (a workspace) and for named sockets.
Order: ⊆ of mounts and of the rights of each. A mount whose class is not allowed is lost, and `refusals` then refuses:
a volume that disappears is silent data loss. `facts.sources` says what a source really is; `kernel` finds it out.
Source: mount(2), mount_setattr(2) (Linux 5.12, recursive flags), runtime-spec config.md "Mounts".
"""

from __future__ import annotations

from shim.errors import Invalid, Refused
from shim.lattice import EVERYTHING, REASON, Decrease, Value, at, names_leq, names_meet, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Names, Section, Spec

    Entry = tuple[int, str, str, str, int]  # position, destination, class, source, rights

NAME = "mounts"
KEYS = ("mounts", "root.path", "linux.rootfsPropagation")
ROOT = -1  # the position of root.path among the mounts

WRITE, SUID, DEV, EXEC = 1, 2, 4, 8
BELOW = 4  # the same four for what is mounted below a recursive bind: shifted by this
SLAVE, SHARED = 256, 512  # mounts made later on the host appear here; those made here appear on the host
HOST_VIEW = 1024  # the host's own /proc, /sys, /dev/shm or /dev/mqueue instead of the container's
FLAGS = WRITE | SUID | DEV | EXEC
VOLUME = WRITE | EXEC | (WRITE | EXEC) << BELOW  # what a section can grant a volume
ALL = FLAGS | FLAGS << BELOW | SLAVE | SHARED | HOST_VIEW
REFUSED = -1

# option -> (bits it takes, bits it gives); what an option says holds for what stands below a bind only if it starts
# with r. Source: mount(8), runc's and crun's option tables.
OPTIONS: dict[str, tuple[int, int]] = {}
for _name, _bit in (("suid", SUID), ("dev", DEV), ("exec", EXEC)):
    OPTIONS["no" + _name] = (_bit, 0)
    OPTIONS[_name] = (0, _bit)
    OPTIONS["rno" + _name] = (_bit | _bit << BELOW, 0)
    OPTIONS["r" + _name] = (0, _bit | _bit << BELOW)
OPTIONS.update(
    {
        "ro": (WRITE, 0),
        "rw": (0, WRITE),
        "rro": (WRITE | WRITE << BELOW, 0),
        "rrw": (0, WRITE | WRITE << BELOW),
        "private": (SLAVE | SHARED, 0),
        "rprivate": (SLAVE | SHARED, 0),
        "unbindable": (SLAVE | SHARED, 0),
        "runbindable": (SLAVE | SHARED, 0),
        "slave": (SHARED, SLAVE),
        "rslave": (SHARED, SLAVE),
        "shared": (0, SLAVE | SHARED),
        "rshared": (0, SLAVE | SHARED),
    }
)
PROPAGATION = tuple(name for name, (take, give) in OPTIONS.items() if (take | give) & (SLAVE | SHARED))
# Options that give and take nothing; any other is refused, since delegates turn it into a mount flag (`remount` changes
# the mount that is there already), act on it themselves (crun's copy-symlink), or hand it to a file system.
HARMLESS = frozenset(
    (
        *("bind", "rbind", "defaults", "async", "sync", "dirsync", "mand", "nomand", "silent", "loud", "tmpcopyup"),
        *("idmap", "ridmap", "newinstance", "nosymfollow", "symfollow", "lazytime", "nolazytime"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("ratime", "rnoatime", "rdiratime", "rnodiratime", "rrelatime", "rnorelatime", "rstrictatime"),
    )
)
HARMLESS_DATA = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "ptmxmode", "hidepid", "context")
# Options that reach what is mounted below a bind, or bring it along.
RECURSIVE = ("rbind", *(name for name in OPTIONS if name[0] == "r" and name[1:] in OPTIONS and name not in PROPAGATION))
# right -> the options that take it away, for the mount itself and for what stands below a recursive bind.
WITHOUT = ((WRITE, "ro", "rro"), (SUID, "nosuid", "rnosuid"), (DEV, "nodev", "rnodev"), (EXEC, "noexec", "rnoexec"))

# File systems of the kernel, by (type, destination): anywhere else they would be a second, unmasked view of it.
SYSTEM = {
    ("proc", "/proc"): "proc",
    ("sysfs", "/sys"): "sysfs",
    ("cgroup", "/sys/fs/cgroup"): "cgroup",
    ("cgroup2", "/sys/fs/cgroup"): "cgroup",
    ("devpts", "/dev/pts"): "devpts",
    ("mqueue", "/dev/mqueue"): "mqueue",
    ("tmpfs", "/dev"): "dev",
    ("tmpfs", "/dev/shm"): "shm",
}
# The host's own view at the same place -> the class, and the container's own file system to mount instead.
HOST_VIEWS = {
    "/proc": ("proc", "proc", ("nosuid", "noexec", "nodev")),
    "/sys": ("sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    "/dev/mqueue": ("mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    "/dev/shm": ("shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
}
KERNEL_RIGHTS = {
    "rootfs": ALL & ~(SHARED | HOST_VIEW),
    "proc": WRITE,
    "sysfs": 0,
    "cgroup": 0,
    "devpts": WRITE | DEV,
    "mqueue": WRITE,
    "dev": WRITE | DEV | EXEC,
    "shm": WRITE | (WRITE << BELOW),
    "tmpfs": WRITE | EXEC,
    "engine": FLAGS | FLAGS << BELOW | SLAVE,  # its own files, as it mounts them
    "system": EXEC | EXEC << BELOW,
}
CLASSES = (*KERNEL_RIGHTS, "volume", "socket", "device", "authority", "missing", "other")


class Mounts(Value):
    """`entries`: a spec's mounts, or None in a policy's value, which has `rights`: (class, bits or REFUSED) of each
    class, `places`: (destination, bits) of exceptions for volumes, and `sockets`: paths that are granted by name.
    """

    __slots__ = ("entries", "rights", "places", "sockets")

    def __init__(
        self,
        entries: tuple[Entry, ...] | None,
        rights: tuple[int, ...] = (),
        places: frozenset[tuple[str, int]] = frozenset(),
        sockets: Names = frozenset(),
    ) -> None:
        self.entries = entries
        self.rights = rights
        self.places = places
        self.sockets = sockets


TOP = Mounts(None, (ALL,) * len(CLASSES), frozenset(), EVERYTHING)
BOTTOM = Mounts(())


def leq(a: Mounts, b: Mounts) -> bool:
    if a.entries is None:
        if b.entries is not None:
            return False
        volume = CLASSES.index("volume")
        classes = (x == REFUSED or _within(x, y) for x, y in zip(a.rights, b.rights))
        places = {place for place, _ in a.places | b.places}
        named = (_within(_at(a, place, a.rights[volume]), _at(b, place, b.rights[volume])) for place in places)
        return all(classes) and all(named) and names_leq(a.sockets, b.sockets)
    if b.entries is None:
        return all(_within(entry[4], _allowed(b, entry)) for entry in a.entries)
    other = {entry[:4]: entry[4] for entry in b.entries}
    return all(entry[:4] in other and _within(entry[4], other[entry[:4]]) for entry in a.entries)


def meet(a: Mounts, b: Mounts) -> Mounts:
    if a.entries is None and b.entries is None:
        return _rules_meet(a, b)
    if a.entries is None:
        return meet(b, a)
    if b.entries is None:
        met = [(entry, _allowed(b, entry)) for entry in a.entries]
    else:
        other = {entry[:4]: entry[4] for entry in b.entries}
        met = [(entry, other.get(entry[:4], REFUSED)) for entry in a.entries]
    return Mounts(tuple((*entry[:4], entry[4] & top) for entry, top in met if top != REFUSED))


def from_spec(spec: Spec, facts: Facts) -> Mounts:
    entries = [_root(spec, facts)] if "root" in spec else []
    for position, mount in enumerate(mount for mount in spec.get("mounts") or () if not facts.is_ours(mount)):
        entries.append(_entry(position, mount, facts))
    return Mounts(tuple(entries))


def from_policy(section: Section) -> Mounts:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    execute = EXEC if section.get("exec") else 0
    volume = {"none": REFUSED, "ro": execute, "rw": WRITE | execute}[section.get("volumes", "none")]
    volume = volume if volume == REFUSED else volume | volume << BELOW
    workspace = (WRITE | EXEC) * (1 + (1 << BELOW)) | max(volume, 0)
    return Mounts(
        None,
        tuple({**KERNEL_RIGHTS, "volume": volume, "tmpfs": WRITE | execute}.get(name, REFUSED) for name in CLASSES),
        _canonical(dict.fromkeys(section.get("workspace", ()), workspace), volume),
        frozenset(section.get("sockets", ())),
    )


def apply_to_spec(spec: Spec, value: Mounts, facts: Facts) -> Spec:
    asked = from_spec(spec, facts)
    if asked == value or value.entries is None:
        return spec
    before = {entry[0]: entry for entry in asked.entries or ()}
    after = {entry[0]: entry for entry in value.entries}
    out, mounts, position = spec, [], -1
    for mount in spec.get("mounts") or ():
        if facts.is_ours(mount):
            mounts.append(mount)
            continue
        position += 1
        if position in after:
            mounts.append(_lowered(mount, before[position], after[position][4]))
    if "mounts" in spec:
        out = with_key(out, "mounts", mounts)
    if ROOT in before and ROOT in after and before[ROOT] != after[ROOT]:
        out = with_key(out, KEYS[2], "rslave" if after[ROOT][4] & SLAVE else "rprivate")
    return out


def explain(asked: Mounts, ceiling: Mounts, granted: Mounts) -> list[Decrease]:
    kept = {entry[:4]: entry[4] for entry in granted.entries or ()}
    out = []
    for entry in asked.entries or ():
        rights = kept.get(entry[:4])
        if rights == entry[4]:
            continue
        key = f"mounts.{entry[1]}" if entry[0] != ROOT else "root.path"
        if rights is None:
            why, allow = f"its source is {_class_words(entry[2])}", _allow(entry, WRITE | EXEC)
            out.append(Decrease(key, entry[3] or entry[2], "refused", why, allow))
        else:
            lost = _rights_words(entry[4] & ~rights)
            why = f"{_class_words(entry[2])} is kept with fewer rights"
            out.append(Decrease(key, entry[3] or entry[2], f"without {lost}", why, _allow(entry, entry[4] & ~rights)))
    return out


def refusals(asked: Mounts, granted: Mounts) -> list[Exception]:
    kept = {entry[:4] for entry in granted.entries or ()}
    return [
        Refused(
            NAME,
            "root.path" if entry[0] == ROOT else entry[1],
            f"{entry[3]} ({_class_words(entry[2])})".lstrip(),
            "no such mount",
            _todo(entry),
        )
        for entry in asked.entries or ()
        if entry[:4] not in kept
    ]


def rights_of(options: list[str], recursive: bool, bind: bool) -> int:
    """What `options` leave of the rights, read in order as delegates do: of two that contradict, the last wins."""
    rights = FLAGS | (FLAGS << BELOW if recursive else 0) | (SLAVE if bind else 0)
    for option in options:
        take, give = OPTIONS.get(option, (0, 0))
        rights = rights & ~take | give
    return rights if recursive else rights & ~(FLAGS << BELOW)


def destination_of(mount: dict[str, Any]) -> str:
    """Where a mount goes, as delegates read it: relative to the root, doubled slashes folded. Invalid with `..`."""
    parts = [part for part in mount.get("destination", "").split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        asked = mount.get("destination", "")
        raise Invalid(NAME, "mounts", f"destination {asked}", "a clean path below /", "write it without ..")
    return "/" + "/".join(parts)


def root_key(path: str) -> str:
    """The key in `facts.sources` of root.path: as a root, a path means something else than as a mount's source."""
    return "root:" + path


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether the delegate takes the source for a path of the host: the type or an option may say so."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def _root(spec: Spec, facts: Facts) -> Entry:
    path = at(spec, "root.path", "")
    source = facts.sources[root_key(path)]
    kind = source.kind if source.kind in ("authority", "missing") else "rootfs"
    asked = at(spec, KEYS[2], "rslave")
    return (ROOT, "/", kind, path, rights_of([asked], True, True) & (FLAGS | FLAGS << BELOW | SLAVE | SHARED))


def _entry(position: int, mount: dict[str, Any], facts: Facts) -> Entry:
    place, options, path = destination_of(mount), mount.get("options") or [], mount.get("source") or ""
    strange = [one for one in options if not _known(one)]
    if strange:
        return (position, place, "other", f"{path} {','.join(strange)}", ALL)
    if not is_bind(mount):
        return (position, place, _kernel_class(mount.get("type") or "", place), "", rights_of(options, False, False))
    # Nothing is mounted below a file, and crun 1.8.1 fails on a recursive option there.
    recursive = facts.sources[path].directory and any(one in RECURSIVE for one in options)
    rights = rights_of(options, recursive, True)
    view = HOST_VIEWS.get(place)
    if view and facts.sources[path].real == place:
        return (position, place, view[0], "", rights | HOST_VIEW)
    kind = facts.sources[path].kind
    return (position, place, "authority" if is_over_kernel(place) and kind != "engine" else kind, path, rights)


def _known(option: str) -> bool:
    return option in OPTIONS or option in HARMLESS or option.partition("=")[0] in HARMLESS_DATA


def _kernel_class(kind: str, place: str) -> str:
    if (kind, place) in SYSTEM:
        return SYSTEM[kind, place]
    return "tmpfs" if kind == "tmpfs" and not is_over_kernel(place) else "other"


def is_over_kernel(place: str) -> bool:
    """Whether a mount at `place` would cover what masks and read-only paths protect, or the null device that they are
    made of (CVE-2025-31133).
    """
    return place.startswith(("/proc/", "/sys/", "/dev/null")) or place in ("/proc", "/sys", "/dev")


def _within(rights: int, top: int) -> bool:
    if rights == REFUSED:
        return True
    return top != REFUSED and rights & ~top == 0


def _allowed(rules: Mounts, entry: Entry) -> int:
    """The rights that a policy allows a mount, or REFUSED."""
    top = rules.rights[CLASSES.index(entry[2])]
    if entry[2] == "volume":
        return _at(rules, entry[1], top)
    if entry[2] == "socket" and top == REFUSED and entry[3] in rules.sockets:
        return WRITE
    return top


def _at(rules: Mounts, place: str, otherwise: int) -> int:
    """The rights of a volume at `place`: those of the deepest exception at or above it, else of every volume."""
    best, rights = "", otherwise
    for one, bits in rules.places:
        if _inside(place, one) and len(one) > len(best):
            best, rights = one, bits
    return rights


def _inside(place: str, other: str) -> bool:
    return place == other or place.startswith(other + "/")


def _canonical(places: dict[str, int], volume: int) -> frozenset[tuple[str, int]]:
    """Without exceptions that change nothing: one form for one meaning."""
    kept: dict[str, int] = {}
    for place in sorted(places, key=len):
        above = [one for one in kept if _inside(place, one)]
        if places[place] != (kept[max(above, key=len)] if above else volume):
            kept[place] = places[place]
    return frozenset(kept.items())


def _rules_meet(a: Mounts, b: Mounts) -> Mounts:
    rights = tuple(REFUSED if REFUSED in (x, y) else x & y for x, y in zip(a.rights, b.rights))
    volume = CLASSES.index("volume")
    places = {}
    for place in {one for one, _ in a.places | b.places}:
        x, y = _at(a, place, a.rights[volume]), _at(b, place, b.rights[volume])
        places[place] = REFUSED if REFUSED in (x, y) else x & y
    return Mounts(None, rights, _canonical(places, rights[volume]), names_meet(a.sockets, b.sockets))


def _lowered(mount: dict[str, Any], before: Entry, rights: int) -> dict[str, Any]:
    """`mount` with `rights` only: options that gave what was lost go, those that deny it are added."""
    lost = before[4] & ~rights
    if not lost:
        return mount
    if lost & HOST_VIEW:
        _, kind, fresh = HOST_VIEWS[before[1]]
        options = [*fresh, *(() if rights & WRITE or "ro" in fresh else ("ro",))]  # a read-only view stays one
        return {"destination": before[1], "type": kind, "source": kind, "options": options}
    bind = is_bind(mount)
    options = [one for one in mount.get("options") or () if not OPTIONS.get(one, (0, 0))[1] & lost]
    if lost & (SLAVE | SHARED):
        options = [one for one in options if one not in PROPAGATION]
        options.append("rslave" if rights & SLAVE else "rprivate")
    for bit, single, recursive in WITHOUT:
        if lost & bit and single not in options:
            options.append(single)
        if bind and lost & bit << BELOW and recursive not in options:
            options.append(recursive)
    return {**mount, "options": options}


CLASS_WORDS = {
    "authority": "authority over the host",
    "socket": "a socket of the host",
    "device": "a device of the host",
    "missing": "not there",
    "other": "a file system or an option that only the host may use here",
    "volume": "a volume",
    "system": "a directory of the host's system",
    "engine": "a file of the engine",
}


def _class_words(kind: str) -> str:
    return CLASS_WORDS.get(kind, kind)


def _rights_words(lost: int) -> str:
    words = [
        (WRITE | WRITE << BELOW, "write"),
        (SUID | SUID << BELOW, "set-uid"),
        (DEV | DEV << BELOW, "devices"),
        (EXEC | EXEC << BELOW, "exec"),
        (SLAVE | SHARED, "propagation"),
        (HOST_VIEW, "the host's view"),
    ]
    return ", ".join(word for bits, word in words if lost & bits)


def _allow(entry: Entry, lost: int) -> str:
    if entry[2] == "socket":
        return f'[mounts] sockets = [{{ path = "{entry[3]}"{REASON} }}]'
    if entry[2] == "volume" and not lost & ~VOLUME:
        return '[mounts] volumes = "rw", exec = true'
    return 'mounts = "top"' + REASON


def _todo(entry: Entry) -> str:
    if entry[2] == "socket":
        return f"name it in the policy: {_allow(entry, 0)}"
    if entry[2] == "missing":
        return "make the directory on the host first"
    if entry[2] == "volume":
        return 'set [mounts] volumes = "ro" or "rw" in the policy'
    if entry[2] == "device":
        return "ask for it as a device (--device) and name it under [devices] in the policy"
    return "mount a directory that holds only what the container needs"
