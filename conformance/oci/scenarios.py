"""Scenarios of the differential suite: each does the same things with any runtime and writes down what happened.

Belongs here: what is done. Next door: test_differential.py compares the transcripts.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance import evidence, expect
from conformance.oci.bundles import Bundle, sleeper, spec
from conformance.oci.cli import Runtime
from conformance.room import Result

HOST = evidence.of_process("self")
Maker = Callable[[dict[str, Any]], Bundle]


@dataclass
class Transcript:
    """What a scenario saw, by step; the runtime's own paths, pids and times are replaced by words."""

    runtime: Runtime
    bundle: Maker
    steps: dict[str, Any] = field(default_factory=dict)
    _words: list[tuple[str, str]] = field(default_factory=list)

    def made(self, config: dict[str, Any]) -> Bundle:
        """A new bundle, called BUNDLE in the transcript."""
        new = self.bundle(config)
        self._words.append((str(new.path), f"BUNDLE{len(self._words)}"))
        return new

    def call(self, step: str, *args: str, **how: Any) -> Result:
        """One command of the runtime, written down as code, stdout and stderr."""
        result = self.runtime.call(*args, **how)
        self.steps[step] = {"code": result.code, "out": self.plain(result.out), "err": self.plain(result.err)}
        return result

    def note(self, step: str, value: Any) -> None:
        """Something else worth comparing."""
        self.steps[step] = value

    def plain(self, text: str) -> str:
        """`text` without what no two runs share."""
        for path, word in [*self._words, (str(self.runtime.home), "HOME"), (self.runtime.program, "PROGRAM")]:
            text = text.replace(path, word)
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)", "TIME", text)
        return re.sub(r'("pid": ?|\b(?:pid|PID) )[1-9]\d*', r"\1PID", text)

    def state(self, step: str, name: str) -> None:
        """`state`, with pid and times replaced."""
        self.call(step, "state", name)


def life(log: Transcript) -> None:
    """create, start, kill, delete, with the state after each."""
    made = log.made(sleeper(f"{log.runtime.cgroup}/life"))
    log.call("create", "create", "--bundle", str(made.path), "--pid-file", str(made.path / "pid"), "c")
    log.state("created", "c")
    log.call("start", "start", "c")
    log.state("running", "c")
    log.call("start again", "start", "c")
    log.call("delete while running", "delete", "c")
    log.call("pause", "pause", "c")
    log.state("paused", "c")
    log.call("resume", "resume", "c")
    log.call("update", "update", "--resources=-", "c", input=json.dumps({"memory": {"limit": 100 << 20}}))
    log.call("kill", "kill", "c", "TERM")
    log.runtime.ended("c")
    log.state("stopped", "c")
    log.call("kill after the end", "kill", "c", "TERM")
    log.call("delete", "delete", "c")
    log.state("deleted", "c")
    log.note("pid file", (made.path / "pid").read_text().isdigit())


def runs(log: Transcript) -> None:
    """run in the foreground: exit codes, output, and programs that cannot run."""
    for number, args in enumerate(
        [
            ("sh", "-c", "echo out; echo err >&2; exit 3"),
            ("sh", "-c", "kill -9 $$; exit 0"),
            ("/etc/not-a-program",),
            ("/nowhere/nothing",),
            ("nothing",),
        ]
    ):
        made = log.made(spec(*args))
        log.call(f"run {args[-1]}", "run", "--bundle", str(made.path), f"r{number}")
        log.state(f"after {args[-1]}", f"r{number}")


def execs(log: Transcript) -> None:
    """exec by flags and by process.json."""
    made = log.made(sleeper(f"{log.runtime.cgroup}/execs"))
    log.call("run", "run", "--detach", "--bundle", str(made.path), "c")
    log.call("flags", "exec", "--user", "1000:1000", "--cwd", "/work", "c", "/bin/sh", "-c", "id; pwd; exit 4")
    file = made.path / "process.json"
    for step, inner in {
        "process": spec("sh", "-c", "id; pwd; echo $HOME; exit 5")["process"],
        "nothing": spec("/nowhere/nothing")["process"],
        "other user": {**spec("id")["process"], "user": {"uid": 1000, "gid": 1000, "additionalGids": [5]}},
    }.items():
        file.write_text(json.dumps(inner))
        log.call(step, "exec", "--process", str(file), "c")
    log.call("evidence", "exec", "c", "sh", "-c", evidence.SCRIPT)
    log.note("evidence", _evidence(log.steps["evidence"]["out"]))
    log.call("no container", "exec", "nobody", "true")
    log.call("delete", "delete", "--force", "c")


def errors(log: Transcript) -> None:
    """What engines see when they are wrong."""
    made = log.made(sleeper(f"{log.runtime.cgroup}/errors"))
    for verb in ("state", "start", "delete", "pause", "resume"):
        log.call(f"{verb} of nobody", verb, "nobody")
    log.call("kill nobody", "kill", "nobody", "9")
    log.call("delete nobody by force", "delete", "--force", "nobody")
    log.call("create", "create", "--bundle", str(made.path), "c")
    log.call("create twice", "create", "--bundle", str(made.path), "c")
    log.call("no such signal", "kill", "c", "NOSUCH")
    log.call("by force", "delete", "--force", "c")


def files(log: Transcript) -> None:
    """What a container writes, in its root and in a volume, is on the disk afterwards."""
    script = "umask 027; echo a > /data/a; mkdir /data/d; ln -s a /data/l; echo b > /root/b; chmod 600 /root/b; true"
    config = spec("sh", "-c", script)
    made = log.made(config)
    volume = made.path / "volume"
    volume.mkdir(mode=0o755)
    bind = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]}
    made.write({**config, "mounts": [*config["mounts"], bind]})
    log.call("run", "run", "--bundle", str(made.path), "c")
    log.note("volume", tree(volume))
    log.note("root", tree(made.path / "rootfs"))


def hooks(log: Transcript) -> None:
    """The bundle's own hooks run, in order, with the state on standard input."""
    config = spec("sh", "-c", "echo ran")
    made = log.made(config)
    told = made.path / "told"
    names = ("prestart", "createRuntime", "poststart", "poststop")
    script = "cat > /dev/null; echo $0 >> $1"
    entry = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    made.write({**config, "hooks": {name: [{**entry, "args": [*entry["args"], name, str(told)]}] for name in names}})
    log.call("run", "run", "--bundle", str(made.path), "c")
    log.note("hooks", told.read_text().split() if told.exists() else [])


def shows(log: Transcript) -> None:
    """Evidence of a container's first process, lists, and the config that engines read again."""
    made = log.made(spec("sh", "-c", evidence.SCRIPT, cgroup=f"{log.runtime.cgroup}/shows"))
    log.call("evidence", "run", "--bundle", str(made.path), "c")
    log.note("evidence", _evidence(log.steps["evidence"]["out"]))
    log.note("config.json", made.read())
    log.call("list", "list")
    log.call("list -q", "list", "-q")
    log.call("spec", "spec", "--bundle", str(log.made({}).path))


def _evidence(out: str) -> Any:
    """The evidence in comparable form; the text itself where the probe did not finish."""
    try:
        return expect.normal(evidence.parsed(out), HOST)
    except ValueError:
        return out


def tree(top: Path) -> dict[str, str]:
    """Every file below `top` as mode, owner and content."""
    found = {}
    for here, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = Path(here, name)
            there = path.lstat()
            content = os.readlink(path) if stat.S_ISLNK(there.st_mode) else ""
            if stat.S_ISREG(there.st_mode) and there.st_size < 4096:
                content = path.read_text()
            found[str(path.relative_to(top))] = f"{there.st_mode:o} {there.st_uid}:{there.st_gid} {content}"
    return found


SCENARIOS: dict[str, Callable[[Transcript], None]] = {
    one.__name__: one for one in (life, runs, execs, errors, files, hooks, shows)
}
