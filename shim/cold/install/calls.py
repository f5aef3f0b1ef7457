"""The engines that run here: what they were told at their start, how they read their file again, what they run by us.

Belongs here: processes, pid files, systemctl, our records. Next door: `engines` knows files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from shim import policy, state
from shim.cold.install.engines import ENGINES, Doc, Engine
from shim.errors import HostError, Refused, ShimError

PIDFILE = "/var/run/docker.pid"
SYSTEMD = "/run/systemd/system"  # sd_booted(3)
# What /proc/PID/exe of a dockerd is called; NixOS wraps it, and a package that was replaced meanwhile is deleted.
DOCKERD = ("dockerd", ".dockerd-wrapped")
SECONDS = 120  # a restart of containerd waits for its plugins
# Options of dockerd's command line that say what the file would: with both it does not start.
CONFLICTS = {"--add-runtime": "runtimes", "--default-runtime": "default-runtime"}


def how(engine: Engine, doc: Doc) -> str:
    """One line: how `engine` reads its file again."""
    booted = os.path.isdir(SYSTEMD)
    if engine.name == "docker":
        pidfile = doc.get("pidfile") or PIDFILE
        return "systemctl reload docker" if booted and pidfile == PIDFILE else f"kill -HUP $(cat {pidfile})"
    if not engine.service:
        return "nothing: the next command reads it"
    # containerd has no reload; CRI-O's leaves new handlers unknown (cri-o#10202). Running containers live on in both.
    return f"systemctl restart {engine.service}" if booted else f"restart {engine.name}: its containers live on"


def reloader(engine: Engine, doc: Doc, path: str) -> list[str] | int | None:
    """What `--reload` has to do once `path` is written: a command, the pid of a dockerd, None for nothing.

    HostError where it could not: before anything is written.
    """
    if not engine.service:
        return None
    if engine.name == "docker":
        pid, words = dockerd(doc)
        if not pid:
            todo = "leave --reload out: dockerd reads the file when it starts"
            raise HostError(
                "install", "--reload", "a running dockerd", f"none by {doc.get('pidfile') or PIDFILE}", todo
            )
        read = _option(words, "--config-file") or ENGINES["docker"].main
        if os.path.realpath(read) != os.path.realpath(path):
            raise Refused("install", "--reload", path, f"{read}, which dockerd reads", f"name it: --config {read}")
        return pid
    systemctl = shutil.which("systemctl", path="/usr/bin:/bin")
    if systemctl is None or not os.path.isdir(SYSTEMD):
        todo = f"leave --reload out, and restart {engine.name} as it was started"
        raise HostError("install", "--reload", engine.name, "what systemd runs", todo)
    return [systemctl, "restart", engine.service]


def reload(what: list[str] | int | None) -> None:
    """Does what `reloader` has found. HostError if it fails: the file is then written."""
    try:
        if isinstance(what, int):
            os.kill(what, signal.SIGHUP)
        elif what:
            subprocess.run(what, check=True, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        todo = "the file is written; look at the engine's log, or uninstall"
        raise HostError("install", "--reload", "".join(said), "an engine that takes its file", todo) from None


def check_flags(doc: Doc, path: str, is_named: bool, default: bool) -> None:
    """Refused where the dockerd that runs would not read this file, or not start with what is to be written there."""
    pid, words = dockerd(doc)
    if not pid:
        return
    read = _option(words, "--config-file")
    if read and not is_named and os.path.realpath(read) != os.path.realpath(path):
        raise Refused("install", path, "dockerd's file", f"{read}, which it was started with", f"add --config {read}")
    if os.path.realpath(read or ENGINES["docker"].main) != os.path.realpath(path):
        return
    for option, key in CONFLICTS.items():
        if _option(words, option) and (key == "runtimes" or default):
            todo = f"move what {option} says to {path} first: dockerd does not start with both"
            raise Refused("install", f"{path}: {key}", "a setting", f"dockerd's own option {option}", todo)


def dockerd(doc: Doc) -> tuple[int, list[str]]:
    """(pid, command line) of the dockerd of this daemon.json, by its pid file; (0, []) if it does not run."""
    try:
        pid = int(Path(str(doc.get("pidfile") or PIDFILE)).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        is_it = os.path.basename(words[0]) == "dockerd" and _is_dockerd(pid)
    except (OSError, ValueError):
        return 0, []
    return (pid, words) if is_it else (0, [])


def _is_dockerd(pid: int) -> bool:
    """Whether `pid` is a dockerd of root's: a pid file may be stale, and a command line says what its process likes.
    OSError where it is gone.
    """
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    uids = status.partition("\nUid:")[2].partition("\n")[0].split()
    program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    return program in DOCKERD and bool(uids) and all(int(one) in policy.OWNERS for one in uids)


def _option(words: list[str], name: str) -> str:
    """The value of an option, `--name value` or `--name=value`; empty without it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return ""


def running(engine: Engine) -> list[dict[str, Any]]:
    """Our records of the containers of `engine` that are there."""
    return [one for one in state.records() if engine_of(one) == engine.name]


def engine_of(record: dict[str, Any]) -> str:
    """The engine that made a container, as its bundle's place and its annotations tell; empty for others (ctr)."""
    parts = str(record.get("bundle", "")).split("/")
    space = parts[-2] if len(parts) > 1 else ""
    if space in ("moby", "k8s.io"):  # containerd's namespaces
        return "docker" if space == "moby" else "containerd"
    try:
        asked = json.loads(state.asked(record["root"], record["id"]))
        manager = (asked.get("annotations") or {}).get("io.container.manager")
    except (ShimError, ValueError, AttributeError):
        manager = None
    return {"libpod": "podman", "cri-o": "crio"}.get(str(manager), "")
