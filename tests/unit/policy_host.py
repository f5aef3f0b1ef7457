"""A host with policies for the tests of shim.policy: its directories, and short ways to write into them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import policy


class Host:
    """`etc` and `var` stand for /etc/agentshim and /var/lib/agentshim, below a directory of the test."""

    def __init__(self, root: Path) -> None:
        self.etc, self.var = root / "etc", root / "var"
        (self.etc / "policies").mkdir(parents=True)
        for one in (root, self.etc, self.etc / "policies"):
            one.chmod(0o755)

    def config(self) -> policy.Config:
        return policy.config(str(self.etc), str(self.var))

    def load(self, name: str) -> policy.Policy:
        return policy.load(name, self.config())

    def configure(self, text: str) -> Path:
        return self._write(self.etc / "config.toml", text)

    def policy(self, name: str, text: str = "", about: str = "a test's policy") -> Path:
        head = f'schema = 1\nname = "{name}"\nabout = "{about}"\n'
        return self._write(self.etc / "policies" / f"{name}.toml", head + text)

    def _write(self, path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o644)
        return path


def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose files may also be the tester's own: the tests need no root."""
    monkeypatch.setattr(policy, "OWNERS", (0, os.getuid()))
    return Host(tmp_path)
