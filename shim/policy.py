"""The host's policy at the speed of a container start: compiled policies and the compiled config, read and trusted.

Belongs here: which policy applies (`select`), what the host configured (`config`), what a policy holds (`load`), and
whose files are believed. Next door: `cold.policy` makes the compiled forms from TOML; `product` reads the sections.
A compiled form is used while every file it was made of has the same mtime, ctime, size and inode as when it was read;
a change of owner or mode changes ctime too. A file or directory that someone other than root could change is refused.
"""

from __future__ import annotations

import posix
import time
from _stat import S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX

from shim import hostpaths, wire
from shim.errors import HostError, Refused, ShimError
from shim.lattice import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ETC = "/etc/agentshim"
VAR = "/var/lib/agentshim"
PACKAGE = hostpaths.split(hostpaths.absolute(__file__))[0]
COMPILED = PACKAGE + "/policies/compiled"

FORMAT = 1  # of compiled forms; another one is compiled anew
BUILTIN = ("agent", "dev", "identity", "locked", "web")
BUILTIN_LIMIT = "dev"
TOP_POLICY = "identity"  # every policy is below it, so a form that was compiled for the built-in limit stays true
PREFIX = "agentshim-"
ANNOTATION = "agentshim.policy"
OWNERS = (0,)  # whose files are believed
OVERFLOW = 65534  # how the host's root looks inside a user namespace that does not map it

# With no config.toml. Names: a link is made by the host's owner, and all four are within the limit. Annotations:
# only what is below every default, since podman before 5.0 copies annotations of the *image* into the spec.
DEFAULTS: dict[str, Any] = {
    "delegate": None,
    "delegates": [],
    "default": "agent",
    "limit": BUILTIN_LIMIT,
    "annotations": ["locked"],
    "names": ["locked", "agent", "web", "dev"],
    "mode": "enforce",
    "unknown_keys": "refuse",
    "audit_log": "refuse-create",
    "network_pool": "10.207.0.0/16",
    "network_mark": "0x00800000",
}


class Config(Value):
    """What config.toml says, the keys of DEFAULTS; `etc` and `var` are the directories it was read for."""

    __slots__ = (*DEFAULTS, "etc", "var")

    delegate: str | None
    delegates: list[str]
    default: str
    limit: str
    annotations: list[str]
    names: list[str]
    mode: str
    unknown_keys: str
    audit_log: str
    network_pool: str
    network_mark: str

    def __init__(self, values: dict[str, Any], etc: str = ETC, var: str = VAR) -> None:
        for key, default in DEFAULTS.items():
            setattr(self, key, values.get(key, default))
        self.etc = etc
        self.var = var

    @property
    def mark(self) -> int:
        """`network_mark` as the number that it is."""
        return int(self.network_mark, 0)


class Policy(Value):
    """One compiled policy. `sections`: what each dimension's from_policy takes; `why`: reason, link and end of each
    join by its dotted name; `limit`: name and digest of the host limit it was found to be within; `expires`: unix
    seconds after which a join ends, or None.
    """

    __slots__ = ("name", "digest", "about", "sections", "why", "limit", "expires")

    def __init__(self, form: dict[str, Any]) -> None:
        self.name: str = form["name"]
        self.digest: str = form["digest"]
        self.about: str = form["about"]
        self.sections: dict[str, Any] = form["sections"]
        self.why: dict[str, dict[str, Any]] = form["why"]
        self.limit: dict[str, str] = form["limit"]
        self.expires: int | None = form["expires"]


def config(etc: str = ETC, var: str = VAR) -> Config:
    """The host's configuration; built-in defaults, at the cost of one lstat, where there is no `etc`/config.toml.

    HostError where the file or a directory above it can be changed by others; Invalid where its content is wrong.
    """
    path = etc + "/config.toml"
    if not _exists(path):
        return Config({}, etc, var)
    check_chain(etc)
    form = _stored(var, "/config.json")
    if form is None or list(form["source"])[:1] != [path] or not _fresh(form):
        from shim.cold.policy import compile as cold  # tomllib and jsonschema: 100 ms, only after a change

        form = cold.compile_config(etc, var)
    return Config(form["config"], etc, var)


def load(name: str, config: Config) -> Policy:
    """The compiled policy `name`, compiled anew where a source has changed or a join has expired.

    Refused for an unknown name or a policy above the host limit; HostError and Invalid as `config`.
    """
    check_name(name, config)
    if name in BUILTIN and config.limit in (BUILTIN_LIMIT, TOP_POLICY) and (name != TOP_POLICY or config.limit == name):
        form = _read(f"{COMPILED}/{name}.json")
    else:
        check_directories(config)
        form = _stored(config.var, f"/policies/{name}.json")
        if form is not None and (_host(form) != (config.limit, config.network_pool) or not _fresh(form)):
            form = None
    if form is None or (form["expires"] is not None and form["expires"] <= time.time()):
        from shim.cold.policy import compile as cold  # tomllib and jsonschema: 100 ms, only after a change

        form = cold.compile_stored(name, config)
    return Policy(form)


def select(config: Config, execfn: str, annotations: dict[str, str]) -> str:
    """The policy's name: by the annotation agentshim.policy, else by the executable's name, else the default.

    `execfn` is the path we were executed by: `…/agentshim-web` selects web. An annotation may replace the default, but
    not a policy that the runtime's name has fixed: whoever writes annotations may not undo the host owner's choice.
    """
    program = execfn.rpartition("/")[2]
    fixed = program[len(PREFIX) :] if program.startswith(PREFIX) else None
    if fixed is not None and fixed not in config.names:
        todo = "list it under names in config.toml, or call agentshim by another name"
        raise Refused("policy", program, fixed, _shown(config.names), todo)
    asked = annotations.get(ANNOTATION)
    if asked is None or asked == fixed:
        return fixed or config.default
    if fixed is not None:
        todo = f"drop the annotation, or use the runtime agentshim instead of {program}"
        raise Refused("policy", ANNOTATION, asked, fixed, todo)
    if asked != config.default and asked not in config.annotations:
        todo = "list it under annotations in config.toml, or drop the annotation"
        raise Refused("policy", ANNOTATION, asked, _shown(config.annotations), todo)
    return asked


def check_name(name: str, config: Config) -> None:
    """Refused where `name` is no policy of this host, or a file of the host takes a built-in's name."""
    path = f"{config.etc}/policies/{name}.toml"
    plain = len(name) <= 63 and name.isascii() and name.replace("-", "").isalnum() and name == name.lower()
    known = plain and name[0] != "-"
    found = known and _exists(path)
    if not known or not (found or name in BUILTIN):
        todo = f"write {path}, or choose one of `agentshim policy list`" if known else "use letters, digits and -"
        raise Refused("policy", "name", name, _shown(BUILTIN), todo)
    if found and name in BUILTIN:
        todo = 'rename the file and its name (base = "agent" starts from a built-in one)'
        raise Refused("policy", path, f"another policy {name}", "the built-in one", todo)


def check_directories(config: Config) -> None:
    """HostError unless only root can change the directories that host policies lie in; they need not exist."""
    for directory in (config.etc + "/policies", config.etc):
        if _exists(directory):
            check_chain(directory)
            return


def check_chain(directory: str) -> None:
    """HostError unless only root can change what `directory` and the directories above it hold.

    Above it, a directory that others may write to is fine if it is sticky: they cannot rename what root owns there.
    """
    st = _lstat(directory)
    if not S_ISDIR(st.st_mode):
        raise HostError("policy", directory, "not a directory, or a link", "a directory", "make it a directory")
    _check_owner(directory, st, 0o022)
    while directory != "/":
        directory = hostpaths.split(directory)[0]
        st = _lstat(directory)
        if S_ISLNK(st.st_mode):  # /var or /var/lib may lie elsewhere: both ways to it count
            _check_owner(directory, st, 0)
            check_chain(hostpaths.real(directory))
        else:
            _check_owner(directory, st, 0 if st.st_mode & S_ISVTX else 0o022)


def check_file(path: str, st: posix.stat_result) -> None:
    """HostError unless `st` is of a regular file that only root can change."""
    if not S_ISREG(st.st_mode):
        todo = "put the file itself there (a symbolic link, FIFO or directory is not read)"
        raise HostError("policy", path, "not a regular file", "a regular file", todo)
    _check_owner(path, st, 0o022)


def record(st: posix.stat_result) -> list[int]:
    """What must stay the same for a compiled form to stay true."""
    return [st.st_mtime_ns, st.st_ctime_ns, st.st_size, st.st_ino]


def _check_owner(path: str, st: posix.stat_result, forbidden: int) -> None:
    if st.st_uid not in OWNERS and not (st.st_uid == OVERFLOW and _is_namespaced()):
        raise HostError("policy", path, f"owner uid {st.st_uid}", "owner root", f"chown root:root {path}")
    if st.st_mode & forbidden:
        asked = f"mode {st.st_mode & 0o7777:04o}"
        raise HostError("policy", path, asked, "not writable by group or others", f"chmod go-w {path}")


def _is_namespaced() -> bool:
    """Whether we are in a user namespace of our own, as under rootless podman, whose user is no less than its policy's
    owner: there every unmapped owner looks the same, and /etc is root's.
    """
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def _host(form: dict[str, Any]) -> tuple[str, str]:
    """What config.toml said when the form was made: the limit, and whose addresses nobody is granted."""
    return form["limit"]["name"], form.get("pool", "")


def _fresh(form: dict[str, Any]) -> bool:
    """Whether every source is as it was when the form was made."""
    try:
        return all(record(posix.lstat(path)) == then for path, then in form["source"].items())
    except OSError:
        return False


def _stored(var: str, name: str) -> dict[str, Any] | None:
    """The compiled form at `var` + `name`; None where there is none, or where others could have written it."""
    path = var + name
    try:
        check_chain(hostpaths.split(path)[0])
        check_file(path, posix.lstat(path))
    except (HostError, OSError):
        return None
    return _read(path)


def _read(path: str) -> dict[str, Any] | None:
    """The form in a file; None where it is missing, torn or of another format: it will be made anew."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = b""
        while block := posix.read(fd, 1 << 18):
            data += block
        form = wire.loads(data, "policy", path)
    except (OSError, ShimError):
        return None
    finally:
        posix.close(fd)
    return form if isinstance(form, dict) and form.get("format") == FORMAT else None


def _exists(path: str) -> bool:
    """Whether something is at `path`, a dangling link included. HostError where the kernel does not say."""
    try:
        posix.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(path, error) from None
    return True


def _lstat(path: str) -> posix.stat_result:
    try:
        return posix.lstat(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> HostError:
    return HostError("policy", path, f"errno {error.errno}", "a readable file", "mend the path, or run as root")


def _shown(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
