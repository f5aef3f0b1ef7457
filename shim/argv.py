"""The command grammar of runc 1.1 to 1.4 and crun 1.8 to 1.20, as data, read as runc reads it.

One dash or two, `--name value` or `--name=value`, exact names only, the last of a repeated option wins, `--` ends the
options. Like runc, options may follow the id, except for `exec` and `ps`, where the rest is another program's.
Where runc and crun would differ (an integer as 010 or 0x8, `--root ""`, the cwd to runc) the spelling is refused.

Belongs here: words. Next door: `runc` finds and runs the delegate with canonical(); `verbs` know what an option means.
"""

from __future__ import annotations

from shim.errors import Bug, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Option = str | int | bool | list[str]

# Every option takes a text, except these.
FLAGS = frozenset(
    (
        "all",
        "auto-dedup",
        "debug",
        "detach",
        "ext-unix-sk",
        "file-locks",
        "force",
        "help",
        "ignore-paused",
        "keep",
        "lazy-pages",
        "leave-running",
        "link-remap",
        "no-new-keyring",
        "no-new-privs",
        "no-pivot",
        "no-subreaper",
        "pre-dump",
        "quiet",
        "regex",
        "rootless",
        "shell-job",
        "stats",
        "systemd-cgroup",
        "tcp-close",
        "tcp-established",
        "tcp-skip-in-flight",
        "tty",
        "version",
    )
)
LISTS = frozenset(("additional-gids", "cap", "cgroup", "empty-ns", "env"))  # may be given several times
INTEGERS = {"blkio-weight": 0, "pids-limit": -1, "preserve-fds": 0, "status-fd": -1}  # the least value
SHORT = {
    "a": ("all",),
    "b": ("bundle",),
    "c": ("cap",),
    "d": ("detach",),
    "e": ("env",),
    "f": ("force", "format"),
    "g": ("additional-gids",),
    "h": ("help",),
    "p": ("process",),
    "q": ("quiet",),
    "r": ("resources", "regex"),
    "t": ("tty",),
    "u": ("user",),
    "v": ("version",),
}
GLOBALS = ("root", "log", "log-format", "debug", "systemd-cgroup", "criu", "rootless", "help", "version")
TEXT_GLOBALS = frozenset(("rootless",))  # a flag elsewhere (`spec`)

_START = "bundle console-socket pidfd-socket pid-file no-pivot no-new-keyring preserve-fds no-subreaper"
_CRIU = (
    "image-path work-path tcp-established tcp-close ext-unix-sk shell-job file-locks link-remap manage-cgroups-mode"
    " network-lock empty-ns auto-dedup lazy-pages"
)
# verb: (options, least and greatest number of arguments). None: any number, and options only before the first.
VERBS: dict[str, tuple[str, int, int | None]] = {
    "create": (_START, 1, 1),
    "run": (_START + " detach keep", 1, 1),
    "restore": (
        _CRIU + " bundle console-socket pid-file no-pivot no-subreaper detach lsm-profile lsm-mount-context",
        1,
        1,
    ),
    "checkpoint": (
        _CRIU + " parent-path leave-running status-fd page-server pre-dump tcp-skip-in-flight",
        1,
        1,
    ),
    "exec": (
        "console-socket pidfd-socket pid-file cwd env tty user additional-gids process detach process-label apparmor"
        " no-new-privs cap preserve-fds cgroup ignore-paused no-subreaper",
        1,
        None,
    ),
    "update": (
        "resources blkio-weight cpu-period cpu-quota cpu-burst cpu-idle cpu-share cpu-rt-period cpu-rt-runtime"
        " cpuset-cpus cpuset-mems memory memory-reservation memory-swap kernel-memory kernel-memory-tcp pids-limit"
        " l3-cache-schema mem-bw-schema",
        1,
        1,
    ),
    "start": ("", 1, 1),
    "delete": ("force regex", 1, 1),
    "state": ("", 1, 1),
    "kill": ("all regex", 1, 2),
    "list": ("format quiet", 0, 0),
    "ps": ("format", 1, None),
    "pause": ("", 1, 1),
    "resume": ("", 1, 1),
    "events": ("interval stats", 1, 1),
    "features": ("", 0, 0),
    "spec": ("bundle rootless", 0, 0),
}
NETWORK = ("flows", "denied", "why", "lease", "net")
ENGINES = ("install", "uninstall")
# Their arguments are their own.
RECORDED = ("create", "run", "restore", "exec", "update")  # in the audit log, and each refusal of them
OURS = ("explain", "policy", "doctor", "complete", "audit", "hook", "version", *NETWORK, *ENGINES)
HELP = ("help", "h")

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_CRUN_LACKS = frozenset(("criu",))
_TOLD = frozenset(("tty", "no-new-privs"))  # of exec: given as false they override, absent they do not
_ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+,-."
ID_LIMIT = 1024


class Call:
    """One request. `globals` and `options`: long name -> value, only those that were given.

    A value is a str, an int (INTEGERS), a bool (FLAGS) or a list of str (LISTS). `verb`: of VERBS, OURS, or "help".
    `args`: what remains, the id first; all words after it for OURS and help. `probe`: the engine only asks what
    there is (`--help`, or `restore --lsm-mount-context` with nothing after): pass canonical() on, decide nothing.
    """

    __slots__ = ("globals", "verb", "options", "args", "probe")

    def __init__(
        self, globals_: dict[str, Option], verb: str, options: dict[str, Option], args: list[str], probe: bool = False
    ) -> None:
        self.globals = globals_
        self.verb = verb
        self.options = options
        self.args = args
        self.probe = probe

    @property
    def root(self) -> str | None:
        """--root as given, relative perhaps; None where the delegate's default holds."""
        return self._text("root")

    @property
    def log(self) -> str | None:
        """--log, where the JSON error line goes; None for stderr alone."""
        return self._text("log")

    @property
    def log_format(self) -> str:
        """'text' or 'json'."""
        return self._text("log-format") or "text"

    @property
    def criu(self) -> str | None:
        """--criu, a program that the delegate may run as root."""
        return self._text("criu")

    @property
    def rootless(self) -> str | None:
        """--rootless: 'true', 'false' or 'auto', as given."""
        return self._text("rootless")

    @property
    def debug(self) -> bool:
        """--debug."""
        return self.globals.get("debug") is True

    @property
    def systemd_cgroup(self) -> bool:
        """--systemd-cgroup."""
        return self.globals.get("systemd-cgroup") is True

    def _text(self, name: str) -> str | None:
        value = self.globals.get(name)
        return value if isinstance(value, str) else None


def parse(argv: list[str]) -> Call:
    """The request in `argv` (without the program's name). Invalid on anything that the grammar does not hold.

    Does not check the id: check_id(call.args[0]).
    """
    given, rest = _options(argv, GLOBALS, TEXT_GLOBALS, interspersed=False)
    if given.pop("help", False):
        return Call(given, "help", {}, rest)
    if given.pop("version", False):
        return Call(given, "version", {}, [])
    _check_globals(given)
    if not rest or rest[0] in HELP:
        return Call(given, "help", {}, rest[1:])
    verb, words = rest[0], rest[1:]
    if verb in OURS:
        return Call(given, verb, {}, words)
    if verb not in VERBS:
        raise Invalid("argv", verb, "an unknown command", _listed((*VERBS, *OURS)), "use one of these")
    names, least, most = VERBS[verb]
    if verb == "restore" and words in (["--lsm-mount-context"], ["-lsm-mount-context"]):
        return Call(given, verb, {"lsm-mount-context": ""}, [], probe=True)
    options, args = _options(words, (*names.split(), "help"), frozenset(), interspersed=most is not None)
    if options.pop("help", False):
        return Call(given, verb, {}, [], probe=True)
    if len(args) < least or (most is not None and len(args) > most):
        raise Invalid("argv", verb, f"{len(args)} arguments", _count(least, most), "options take no bare words")
    dashed = [word for word in (args[:1] if most is None else args) if word[:1] == "-"]
    if dashed:  # behind a `--`, which canonical() does not write: a delegate would take it for an option
        raise Invalid("argv", verb, dashed[0], "an argument without a dash first", "name the container otherwise")
    return Call(given, verb, options, args)


def check_id(id_: str) -> str:
    """`id_` if runc would take it as a container's id, Invalid if not. A leading dash is refused as well."""
    if not id_ or len(id_) > ID_LIMIT:
        raise Invalid("argv", "id", f"{len(id_)} characters", f"1 to {ID_LIMIT}", "name the container otherwise")
    if id_.strip(_ID_CHARACTERS) or id_ in (".", "..") or id_[0] == "-":
        raise Invalid(
            "argv", "id", id_, "letters, digits and _ + , - . with no dash first", "name the container otherwise"
        )
    return id_


def canonical(call: Call, delegate_kind: str) -> list[str]:
    """The words (without the program's name) that say `call` to a delegate of kind 'runc' or 'crun'.

    Long names, each value a word of its own, no `--`: both read that in one way. Flags that are off are left out.
    """
    if delegate_kind not in ("runc", "crun"):
        raise Bug("argv", "delegate", delegate_kind, "runc or crun", "report this")
    if call.verb in OURS and call.verb != "version":
        raise Bug("argv", "verb", call.verb, "a verb of the delegate", "report this")
    lacks = _CRUN_LACKS if delegate_kind == "crun" else frozenset()
    words = _words({name: value for name, value in call.globals.items() if name not in lacks})
    if call.verb in ("help", "version"):
        return [*words, "--" + call.verb]
    words.append(call.verb)
    if call.probe:
        return [*words, "--lsm-mount-context" if call.options else "--help"]
    told = _TOLD if delegate_kind == "runc" else frozenset(("tty",))  # crun: only --tty takes =false
    words += _words(call.options, told)
    return words + call.args


def _options(
    words: list[str], names: tuple[str, ...], texts: frozenset[str], interspersed: bool
) -> tuple[dict[str, Option], list[str]]:
    """The options among `words`, and the rest in order."""
    given: dict[str, Option] = {}
    spelled: dict[str, str] = {}
    rest: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            return given, rest + words[at:]
        if len(word) < 2 or word[0] != "-":
            rest.append(word)
            if interspersed:
                continue
            return given, rest + words[at:]
        short, equals, value = word[2 if word[1] == "-" else 1 :].partition("=")
        name = _name(short, names, word)
        if spelled.setdefault(name, short) != short:
            raise Invalid("argv", word, f"{name} in two spellings", "one", f"write --{name} once")
        if name in FLAGS and name not in texts:
            given[name] = _flag(word, value) if equals else True
            continue
        if not equals:
            if at == len(words):
                raise Invalid("argv", word, "no value", "a value", f"write {word} VALUE")
            value = words[at]
            at += 1
        _put(given, name, word, value)
    return given, rest


def _name(short: str, names: tuple[str, ...], word: str) -> str:
    """The long name of an option as spelled, exactly: crun would take abbreviations."""
    if len(short) > 1 and short in names:
        return short
    for name in SHORT.get(short, ()):
        if name in names:
            return name
    known = _listed("--" + name for name in names)
    raise Invalid("argv", word, "an unknown option", known, "use one of these, spelled out")


def _flag(word: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise Invalid("argv", word, value, "true or false", "leave the value out")


def _put(given: dict[str, Option], name: str, word: str, value: str) -> None:
    """Add one value. An empty text is no option at all to runc."""
    if name in INTEGERS:
        given[name] = _integer(word, value, INTEGERS[name])
    elif name in LISTS:
        many = given.setdefault(name, [])
        assert isinstance(many, list)
        many.append(value)
    elif value or name in ("root", "log-format"):
        given[name] = value
    else:
        given.pop(name, None)


def _integer(word: str, value: str, least: int) -> int:
    """A plain decimal: to runc 010 is 8 and 0x8 a number, to crun neither."""
    digits = value.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 10 and value == str(int(value)) and int(value) >= least:
        return int(value)
    raise Invalid("argv", word, value, f"a decimal number from {least}", "write a plain number")


def _check_globals(given: dict[str, Option]) -> None:
    if given.get("root") == "":
        raise Invalid("argv", "--root", "nothing", "a directory", "leave it out for the default")
    if given.get("log-format", "text") not in ("text", "json"):
        raise Invalid("argv", "--log-format", given["log-format"], "text or json", "use one of these")


def _words(options: dict[str, Option], told: frozenset[str] = frozenset()) -> list[str]:
    out: list[str] = []
    for name, value in options.items():
        if value is True:
            out.append("--" + name)
        elif value is False:
            out += [f"--{name}=false"] if name in told else []
        else:
            for one in value if isinstance(value, list) else (value,):
                out += ("--" + name, str(one))
    return out


def _count(least: int, most: int | None) -> str:
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def _listed(words: Iterable[str]) -> str:
    return " ".join(words)
