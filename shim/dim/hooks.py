"""Hooks: programs that the delegate runs as root of the host. Order: ⊆ of hooks.

Admitted by the file they really are, a root-owned binary on the policy's list, and by an environment that cannot make
it another: ENVIRONMENT. dockerd before 28 brings one of its own, admitted by its exact shape (SETKEY). The path is
replaced by the real file: what /proc/<pid>/exe names may change between our look and the delegate's. A hook that is not
admitted refuses the container: an engine whose hook is dropped believes that it ran.
Source: runtime-spec config.md "POSIX-platform Hooks".
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "hooks"
KEYS = ("hooks",)
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

# dockerd's own: `libnetwork-setkey -exec-root=DIR ID CONTROLLER`, its program as Debian and Docker install it.
SETKEY = ("libnetwork-setkey", "-exec-root=")
SETKEY_PROGRAMS = ("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd")
SETKEY_KINDS = ("prestart", "createRuntime")
# What a hook's environment may hold: LD_PRELOAD, PYTHONPATH, BASH_ENV and their kind make any program another.
ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "TERM", "XDG_RUNTIME_DIR", "PATH")
PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
OURS = ("createRuntime", "poststart", "poststop")  # where `plan` puts our own
WORDS = {
    "engine": "an engine's own",
    "listed": "not on the list",
    "never": "no root-owned program, or a risky environment",
}


class Hooks(Value):
    """`hooks`: (kind, file, admission, arguments) of each hook, or None for any; `files`: real files that are admitted,
    None for all. As in sysctl, a spec's value has hooks and a policy's has files. `admission`: 'engine' for SETKEY,
    'listed' where a list may admit it, 'never' where its program or its environment is not to be trusted.
    """

    __slots__ = ("hooks", "files")

    def __init__(self, hooks: frozenset[tuple[str, ...]] | None, files: frozenset[str] | None) -> None:
        self.hooks = hooks if hooks is None or files is None else frozenset(h for h in hooks if _admitted(h, files))
        self.files = files if hooks is None else None


TOP = Hooks(None, None)
BOTTOM = Hooks(frozenset(), None)


def leq(a: Hooks, b: Hooks) -> bool:
    return meet(a, b) == a


def meet(a: Hooks, b: Hooks) -> Hooks:
    if a.hooks is not None and b.hooks is not None:
        return Hooks(a.hooks & b.hooks, None)
    if a.hooks is None and b.hooks is None:
        if a.files is None or b.files is None:
            return b if a.files is None else a
        return Hooks(None, a.files & b.files)
    hooks, files = (a.hooks, b.files) if a.hooks is not None else (b.hooks, a.files)
    return Hooks(hooks, files)


def from_spec(spec: Spec, facts: Facts) -> Hooks:
    asked = at(spec, KEYS[0], {})
    return Hooks(
        frozenset(
            _described(kind, hook, facts)
            for kind in KINDS
            for hook in asked.get(kind) or ()
            if kind not in OURS or not facts.is_our_hook(hook)
        ),
        None,
    )


def from_policy(section: Section) -> Hooks:
    if section == "top":
        return TOP
    return BOTTOM if section is None else Hooks(None, frozenset(section.get("allow", ())))


def apply_to_spec(spec: Spec, value: Hooks, facts: Facts) -> Spec:
    """Every hook by the real path of its program; `refusals` has stopped whatever this would have to remove."""
    asked = at(spec, KEYS[0], {})
    real = {kind: [_by_file(hook, facts) for hook in hooks or ()] for kind, hooks in asked.items()}
    return spec if all(real[kind] == (asked[kind] or []) for kind in real) else with_key(spec, KEYS[0], real)


def explain(asked: Hooks, ceiling: Hooks, granted: Hooks) -> list[Decrease]:
    why = "a hook runs as root of the host"
    return [
        Decrease(f"hooks.{hook[0]}", " ".join((hook[1], *hook[3:])), "refused", why, _allow(hook))
        for hook in sorted((asked.hooks or frozenset()) - (granted.hooks or frozenset()))
    ]


def refusals(asked: Hooks, granted: Hooks) -> list[Exception]:
    return [
        Refused(
            NAME,
            f"hooks.{hook[0]}",
            f"{hook[1]} ({WORDS[hook[2]]})",
            "root-owned programs on the list, in a plain environment",
            f"if the host's owner trusts it as root: {_allow(hook)} in the policy",
        )
        for hook in sorted((asked.hooks or frozenset()) - (granted.hooks or frozenset()))
    ]


def _allow(hook: tuple[str, ...]) -> str:
    return f'[hooks] add = [{{ path = "{hook[1]}", why = "…", doc = "https://…" }}]'


def _described(kind: str, hook: dict[str, Any], facts: Facts) -> tuple[str, ...]:
    real, args = facts.programs.get(hook["path"], ""), tuple(hook.get("args") or ())
    admission = "listed" if real and all(_plain(entry) for entry in hook.get("env") or ()) else "never"
    if real in SETKEY_PROGRAMS and kind in SETKEY_KINDS and not hook.get("env") and _is_setkey(args):
        admission = "engine"
    return (kind, real or hook["path"], admission, *args)


def _is_setkey(args: tuple[str, ...]) -> bool:
    return len(args) == 4 and args[0] == SETKEY[0] and args[1].startswith(SETKEY[1]) and args[2].isalnum()


def _plain(entry: str) -> bool:
    name, _, value = entry.partition("=")
    return name in ENVIRONMENT and (name != "PATH" or all(place in PATH for place in value.split(":")))


def _admitted(hook: tuple[str, ...], files: frozenset[str]) -> bool:
    return hook[2] == "engine" or (hook[2] == "listed" and hook[1] in files)


def _by_file(hook: dict[str, Any], facts: Facts) -> dict[str, Any]:
    real = facts.programs.get(hook["path"], "")
    return {**hook, "path": real} if real and real != hook["path"] else hook
