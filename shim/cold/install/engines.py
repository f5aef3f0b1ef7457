"""What Docker, containerd, podman and CRI-O call a runtime, and in which file of theirs.

Belongs here: the engines as values, each a set of questions that its own document answers. Next door: `registration`
adds and takes out, `changes` reads and writes, `calls` finds what runs.
Sources: dockerd(8) and daemon.json; containerd docs/man/containerd-config.toml.5.md, and its merging of imports (by
plugin until 1.7, by key since 2.0: containerd#5837, #9982); containers.conf(5); crio.conf(5), crio.conf.d(5).
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from shim.cold.install import json_text, toml_text
from shim.cold.install.toml_text import Path, get
from shim.errors import Invalid, Refused

NAME = "agentshim"
Doc = dict[str, Any]
Puts = list[tuple[Path, Any]]


@dataclass(frozen=True)
class Engine:
    """One engine. `main`: its file; `drop_in`: a file of ours that it reads after that, with all beside it that match
    `pattern`; `vendor`: a file of its package, read first; `service`: its systemd unit; `builtin`: runtimes that it has
    without being told; `inside`: from a runtime's entry to its executable.
    """

    name: str
    main: str
    syntax: ModuleType
    inside: Path
    builtin: tuple[str, ...] = ()
    drop_in: str = ""
    pattern: str = "*.conf"
    vendor: str = ""
    service: str = ""

    def runtimes(self, doc: Doc) -> Path:
        """Where the table of runtimes is."""
        raise NotImplementedError

    def default(self, doc: Doc) -> Path:
        """Where the name of the default runtime is."""
        raise NotImplementedError

    def entry(self, doc: Doc, path: str) -> Any:
        """What registers the executable `path`."""
        raise NotImplementedError

    def puts(self, doc: Doc, around: list[Doc]) -> Puts:
        """What must be in `doc` before a runtime can be: `around` is what else the engine reads."""
        return []

    def extras(self, doc: Doc, before: Doc) -> list[Path]:
        """What `puts` has added to `before`, and may go when no runtime of ours is left in `doc`."""
        return []

    def drop_in_for(self, doc: Doc, main: str) -> str:
        """The drop-in that an engine with the main file `main`, which holds `doc`, reads; empty where it reads none."""
        return self.drop_in if main == self.main else ""

    def reads(self, doc: Doc, main: str) -> list[str]:
        """The files that this engine reads, in its order; some may be missing. Of a file that is not the usual one we
        know nothing else.
        """
        if main != self.main or not self.drop_in:
            return [main]
        found = {self.drop_in, *glob.glob(f"{os.path.dirname(self.drop_in)}/{self.pattern}")}
        return [*filter(None, [self.vendor]), main, *sorted(found)]

    def check(self, doc: Doc, where: str, around: dict[str, Doc]) -> None:
        """Refused or Invalid where a runtime cannot be registered in this file at all."""

    def paths(self, doc: Doc, where: str) -> dict[str, str]:
        """Runtime -> executable, empty where it is none that we understand. Invalid where runtimes are no table."""
        at = self.runtimes(doc)
        table = get(doc, at)
        for depth in range(1, len(at) + 1):
            if not isinstance(get(doc, at[:depth]), dict | None):
                todo = f"correct it: {self.name} does not read it so"
                raise Invalid("install", f"{where}: {'.'.join(at[:depth])}", "no table", "a table", todo)
        return {name: self.path_in(entry) for name, entry in (table or {}).items()}

    def path_in(self, entry: Any) -> str:
        """The executable of one entry."""
        found = get(entry, self.inside) if self.inside else entry
        found = found[0] if isinstance(found, list) and found else found
        return found if isinstance(found, str) else ""


class Docker(Engine):
    def runtimes(self, doc: Doc) -> Path:
        return ("runtimes",)

    def default(self, doc: Doc) -> Path:
        return ("default-runtime",)

    def entry(self, doc: Doc, path: str) -> Any:
        return {"path": path}  # never runtimeArgs: Docker would put a shell in between


class Podman(Engine):
    """runtime_supports_json is left alone: a list of ours would replace the one of the files before it, and without it
    podman reads our stderr, which says the same.
    """

    def runtimes(self, doc: Doc) -> Path:
        return ("engine", "runtimes")

    def default(self, doc: Doc) -> Path:
        return ("engine", "runtime")

    def entry(self, doc: Doc, path: str) -> Any:
        return [path]


class Crio(Engine):
    def runtimes(self, doc: Doc) -> Path:
        return ("crio", "runtime", "runtimes")

    def default(self, doc: Doc) -> Path:
        return ("crio", "runtime", "default_runtime")

    def entry(self, doc: Doc, path: str) -> Any:
        return {"runtime_path": path, "runtime_type": "oci", "runtime_root": "/run/runc"}


class Containerd(Engine):
    """The file's version says where the table of CRI is; versions 3 (containerd 2.0) and 4 (2.3) have it alike."""

    CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime", 4: "io.containerd.cri.v1.runtime"}
    SHIM = "io.containerd.runc.v2"
    FIRST = 2  # both 1.x and 2.x read it

    def plugin(self, doc: Doc) -> Path:
        version = doc.get("version", self.FIRST)
        return ("plugins", self.CRI.get(version, "") if isinstance(version, int) else "")

    def runtimes(self, doc: Doc) -> Path:
        return (*self.plugin(doc), "containerd", "runtimes")

    def default(self, doc: Doc) -> Path:
        return (*self.plugin(doc), "containerd", "default_runtime_name")

    def entry(self, doc: Doc, path: str) -> Any:
        """As runc's, with what its owner has set there (SystemdCgroup above all), and our executable."""
        runc = get(doc, (*self.runtimes(doc), "runc")) or {}
        kept = {key: one for key, one in runc.items() if one and not isinstance(one, dict)}
        options = {key: one for key, one in runc.get("options", {}).items() if one}
        passed = [*kept.get("pod_annotations", []), f"{NAME}.*"]
        own = {"runtime_type": self.SHIM, "pod_annotations": list(dict.fromkeys(passed))}
        return {**kept, **own, "options": {**options, "BinaryName": path}}

    def puts(self, doc: Doc, around: list[Doc]) -> Puts:
        """A table of runtimes replaces containerd's own, which has runc: without it the CRI plugin does not load."""
        main = next((one for one in around if "version" in one), {})
        out: Puts = [] if "version" in doc else [(("version",), main.get("version", self.FIRST))]
        after = {**doc, **({"version": out[0][1]} if out else {})}
        known = [get(one, self.runtimes(after)) for one in (doc, *around)]
        default = next(
            (get(one, self.default(after)) for one in (doc, *around) if get(one, self.default(after))), "runc"
        )
        if not any(known) and default == "runc":
            out.append(((*self.runtimes(after), "runc"), {"runtime_type": self.SHIM}))
        return out

    def extras(self, doc: Doc, before: Doc) -> list[Path]:
        runtimes = self.runtimes(doc)
        alone = get(doc, runtimes) == {"runc": {"runtime_type": self.SHIM}}
        return [(*runtimes, "runc")] if alone and not get(before, runtimes) else []

    def drop_in_for(self, doc: Doc, main: str) -> str:
        """From version 3 on, where an import names all of a directory: before, a plugin's table in one file replaces
        that of another whole, so a drop-in would take away what the main file says of CRI.
        """
        if doc.get("version", self.FIRST) < 3:
            return ""
        for one in doc.get("imports") or []:
            path = os.path.join(os.path.dirname(main), one)
            if os.path.basename(path) in ("*", "*.toml") and not glob.has_magic(os.path.dirname(path)):
                return f"{os.path.dirname(path)}/{NAME}.toml"
        return ""

    def reads(self, doc: Doc, main: str) -> list[str]:
        found = [main]
        for one in doc.get("imports") or []:
            found += sorted(glob.glob(os.path.join(os.path.dirname(main), one)))
        return list(dict.fromkeys(found))

    def check(self, doc: Doc, where: str, around: dict[str, Doc]) -> None:
        disabled = [str(one) for one in doc.get("disabled_plugins") or []]
        if {"cri", *self.CRI.values()} & {*disabled}:
            todo = "take it out there for Kubernetes; Docker wants `agentshim install docker`, ctr and nerdctl nothing"
            raise Refused("install", f"{where}: disabled_plugins", "a runtime of CRI", ", ".join(disabled), todo)
        version = doc.get("version")
        if (version is None and doc) or (version is not None and version not in self.CRI):
            todo = "containerd config migrate prints it in a newer one; or name another file with --config"
            raise Invalid("install", f"{where}: version", version or 1, "2, 3 or 4", todo)
        for path, other in around.items():
            if version in (None, 2) and get(other, self.plugin(doc)) and path != where:
                todo = f"containerd 1.x takes the table from there alone: --config {path}"
                raise Refused("install", f"{where}: imports", "the table of CRI in two files", path, todo)


ENGINES: dict[str, Engine] = {
    one.name: one
    for one in (
        Docker("docker", "/etc/docker/daemon.json", json_text, ("path",), ("runc",), service="docker"),
        Containerd(
            "containerd", "/etc/containerd/config.toml", toml_text, ("options", "BinaryName"), service="containerd"
        ),
        Podman(
            "podman",
            "/etc/containers/containers.conf",
            toml_text,
            (),
            ("crun", "runc"),
            drop_in="/etc/containers/containers.conf.d/agentshim.conf",
            vendor="/usr/share/containers/containers.conf",
        ),
        Crio(
            "crio",
            "/etc/crio/crio.conf",
            toml_text,
            ("runtime_path",),
            ("crun", "runc"),
            drop_in="/etc/crio/crio.conf.d/agentshim.conf",
            pattern="*",
            service="crio",
        ),
    )
}
