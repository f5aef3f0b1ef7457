"""The decided verbs as Docker calls them: their arguments, and the files beside the bundle that they read.

Belongs here: what is asked after create. Next door: `docker` has the bundle itself, `life` the calling.
"""

from __future__ import annotations

import json
from pathlib import Path

from conformance.bench import docker
from conformance.bench.life import Container

# What `docker update --cpu-shares 512 --memory 256m --pids-limit 500` sends on stdin.
RESOURCES = {
    "cpu": {"shares": 512},
    "memory": {"limit": 1 << 28, "swap": 1 << 29},
    "pids": {"limit": 500},
}


def arguments(verb: str, container: Container) -> tuple[list[str], Path | None]:
    """Write what `verb` (create, exec or update) reads; its arguments, and what it reads on stdin."""
    here, name = container.bundle, container.name
    if verb == "create":
        return ["create", "--bundle", str(here), "--pid-file", f"{here}/init.pid", name], None
    if verb == "exec":
        (here / "process.json").write_text(json.dumps(docker.process("true")))
        files = ["--process", f"{here}/process.json", "--detach", "--pid-file", f"{here}/exec.pid"]
        return ["exec", *files, name], None
    (here / "resources.json").write_text(json.dumps(RESOURCES))
    return ["update", "--resources=-", name], here / "resources.json"
