"""Hooks: programs that the delegate runs as root of the host. Order: ⊆ of hooks.

Admitted by the file they really are: a root-owned binary on the policy's list, or an engine's own among ENGINES.
`/proc/<pid>/exe libnetwork-setkey` is how dockerd before 28 names itself; the link alone would admit anything, so the
file behind it must be one of ENGINES. A hook that is not admitted refuses the container: an engine whose hook is
dropped believes that it ran. Source: runtime-spec config.md "POSIX-platform Hooks".
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import Decrease, Value, at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "hooks"
KEYS = ("hooks",)
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

# Where the engines that add hooks of their own are installed: Debian, Docker's packages, nerdctl, podman's networks.
ENGINES = (
    "/usr/bin/dockerd",
    "/usr/sbin/dockerd",
    "/usr/local/bin/dockerd",
    "/usr/bin/nerdctl",
    "/usr/local/bin/nerdctl",
    "/usr/bin/podman",
)


class Hooks(Value):
    """`hooks`: (kind, path, real file, arguments) of each hook, or None for any; `files`: real files that are
    admitted, None for all. As in sysctl, a spec's value has hooks and a policy's has files.
    """

    __slots__ = ("hooks", "files")

    def __init__(self, hooks: frozenset[tuple[str, ...]] | None, files: frozenset[str] | None) -> None:
        self.hooks = hooks if hooks is None or files is None else frozenset(h for h in hooks if h[2] in files)
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
        both = a.files & b.files
        return Hooks(None, both) if both else BOTTOM
    hooks, files = (a.hooks, b.files) if a.hooks is not None else (b.hooks, a.files)
    return Hooks(hooks, files)


def from_spec(spec: Spec, facts: Facts) -> Hooks:
    asked = at(spec, KEYS[0], {})
    return Hooks(
        frozenset(
            (kind, hook["path"], facts.programs.get(hook["path"], ""), *hook.get("args", ()))
            for kind in KINDS
            for hook in asked.get(kind) or ()
            if not facts.is_our_hook(hook)
        ),
        None,
    )


def from_policy(section: Section) -> Hooks:
    if section == "top":
        return TOP
    return BOTTOM if section is None else Hooks(None, frozenset(ENGINES) | frozenset(section.get("allow", ())))


def apply_to_spec(spec: Spec, value: Hooks, facts: Facts) -> Spec:
    """The spec as it is: `refusals` has stopped whatever this would have to remove."""
    return spec


def explain(asked: Hooks, ceiling: Hooks, granted: Hooks) -> list[Decrease]:
    why = "a hook runs as root of the host"
    return [
        Decrease(f"hooks.{hook[0]}", " ".join(hook[1:2] + hook[3:]), "refused", why, _allow(hook))
        for hook in sorted((asked.hooks or frozenset()) - (granted.hooks or frozenset()))
    ]


def refusals(asked: Hooks, granted: Hooks) -> list[Exception]:
    return [
        Refused(
            NAME,
            f"hooks.{hook[0]}",
            f"{hook[1]} ({hook[2] or 'no root-owned program'})",
            "root-owned programs on the list",
            f"if the host's owner trusts it as root: {_allow(hook)} in the policy",
        )
        for hook in sorted((asked.hooks or frozenset()) - (granted.hooks or frozenset()))
    ]


def _allow(hook: tuple[str, ...]) -> str:
    return f'[hooks] add = [{{ path = "{hook[2] or hook[1]}", why = "…", doc = "https://…" }}]'
