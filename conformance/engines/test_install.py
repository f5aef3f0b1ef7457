"""`agentshim install`, judged by the engines: what they know before it, after it, and when it is taken out again.

Belongs here: real engines that read the edited files. Next door: tests/unit/test_install.py has the files and every bad
input. All files are in the room: its /etc is a private overlay.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conformance import evidence, expect
from conformance.columns import AGENT, CONFIG, configure
from conformance.engines.asks import HOST
from conformance.engines.checklist import SLEEP
from conformance.engines.conftest import needs
from conformance.engines.containerd import Containerd
from conformance.engines.dockerd import Docker
from conformance.engines.harness import BUSYBOX, Archive, bridge, running
from conformance.engines.images import tool
from conformance.engines.podman import Podman
from conformance.room import Result, Room, wait_for

pytestmark = pytest.mark.engine

CAPABILITIES = ("cat", "/proc/self/status")


def bounding(out: str) -> int:
    """The bounding set in a /proc/PID/status."""
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", out, re.MULTILINE)
    assert found, out
    return int(found[1], 16)


@pytest.fixture
def shim(the_room: Room) -> Callable[..., Result]:
    """shim("install", …): the command, in the room."""

    def call(*words: str) -> Result:
        return the_room.run([str(the_room.base / "bin/agentshim"), *words])

    return call


@pytest.fixture
def must(shim: Callable[..., Result]) -> Callable[..., str]:
    """As shim; anything but exit code 0 is a failure."""

    def call(*words: str) -> str:
        found = shim(*words)
        assert found.code == 0, str(found)
        return found.out

    return call


@pytest.fixture(autouse=True)
def links(the_room: Room) -> Iterator[None]:
    """The room's own links and configuration, after each test again."""
    there = {path.name for path in (the_room.base / "bin").iterdir()}
    yield
    for path in (the_room.base / "bin").iterdir():
        if path.name not in there:
            path.unlink()
    configure(the_room, CONFIG)


# ---------------------------------------------------------------- Docker


class Plain(Docker):
    """A dockerd whose file knows no runtime but the engine's own."""

    def _config(self, more: Any) -> dict[str, Any]:
        return {key: value for key, value in super()._config(more).items() if key != "runtimes"}

    @property
    def file(self) -> Path:
        return self._file

    def runtimes(self) -> set[str]:
        return set(json.loads(self.must("info", "--format", "{{json .Runtimes}}")))

    def tried(self, *flags: str) -> Result:
        """What a container under these flags says of its capabilities."""
        return self.do("run", "--rm", "--network=none", *flags, self.image(BUSYBOX), *CAPABILITIES)


@contextmanager
def plain(room: Room, archive: Archive) -> Iterator[Plain]:
    home = room.base / "di"
    home.mkdir(mode=0o755)
    engine = Plain(room, home, archive, {})
    engine.file.write_text(json.dumps(json.loads(engine.file.read_text()), indent=2))
    with bridge(room), running(engine):
        yield engine


@pytest.fixture(scope="module")
def docker(the_room: Room, archive: Archive) -> Iterator[Plain]:
    needs("dockerd", "docker", "containerd", "runc")
    with plain(the_room, archive) as engine:
        yield engine


class TestDocker:
    def test_install_reload_and_uninstall(self, docker: Plain, must: Callable[..., str]) -> None:
        """Without a restart: the reload brings the runtimes, and takes them away."""
        config = ("--config", str(docker.file))
        before = docker.file.read_bytes()
        assert not {one for one in docker.runtimes() if "agentshim" in one}
        refused = docker.tried("--runtime=agentshim")
        assert refused.code != 0 and re.search("unknown.*runtime", refused.err, re.IGNORECASE), str(refused)

        diff = must("install", "docker", *config, "--policy", "web", "--dry-run")
        assert '+    "agentshim": {' in diff and docker.file.read_bytes() == before

        told = must("install", "docker", *config, "--policy", "web", "--reload")
        assert "reloaded: docker" in told
        wait_for(lambda: {"agentshim", "agentshim-web"} <= docker.runtimes(), 10, "dockerd to know the runtimes")
        found = docker.tried("--runtime=agentshim")
        assert (found.code, bounding(found.out)) == (0, AGENT.caps), str(found)
        web = docker.tried("--runtime=agentshim-web")
        assert web.code == 0 and bounding(web.out) == 1 << 0 | 1 << 1 | 1 << 6 | 1 << 7 | 1 << 10, str(web)
        assert bounding(docker.tried().out) != AGENT.caps, "the default is another"

        docker.restart()
        assert {"agentshim", "agentshim-web"} <= docker.runtimes(), "read at its start too"

        must("uninstall", "docker", *config, "--reload")
        wait_for(lambda: not docker.runtimes() & {"agentshim", "agentshim-web"}, 10, "dockerd to forget them")
        gone = docker.tried("--runtime=agentshim")
        assert gone.code != 0 and re.search("unknown.*runtime", gone.err, re.IGNORECASE), str(gone)
        assert json.loads(docker.file.read_text()) == {**json.loads(before), "runtimes": {}}
        docker.restart()
        assert docker.tried().code == 0

    def test_default(self, docker: Plain, must: Callable[..., str]) -> None:
        config = ("--config", str(docker.file))
        must("install", "docker", *config, "--set-as-default", "--reload")
        wait_for(lambda: docker.must("info", "--format", "{{.DefaultRuntime}}") == "agentshim", 10, "the default")
        assert bounding(docker.tried().out) == AGENT.caps
        must("uninstall", "docker", *config, "--reload")
        wait_for(lambda: docker.must("info", "--format", "{{.DefaultRuntime}}") == "runc", 10, "the old default")
        assert bounding(docker.tried().out) != AGENT.caps

    def test_containers_that_run_hold_it(
        self, docker: Plain, must: Callable[..., str], shim: Callable[..., Result]
    ) -> None:
        config = ("--config", str(docker.file))
        must("install", "docker", *config, "--reload")
        wait_for(lambda: "agentshim" in docker.runtimes(), 10, "dockerd to know agentshim")
        name = docker.must("run", "-d", "--network=none", "--runtime=agentshim", docker.image(BUSYBOX), *SLEEP)
        before = docker.file.read_bytes()
        refused = shim("uninstall", "docker", *config)
        assert refused.code == 1 and name[:12] in refused.err and docker.file.read_bytes() == before, str(refused)
        docker.remove(name)
        must("uninstall", "docker", *config, "--reload")
        wait_for(lambda: "agentshim" not in docker.runtimes(), 10, "dockerd to forget it")

    def test_stopped_it_gets_its_bytes_back(self, docker: Plain, must: Callable[..., str]) -> None:
        """And dockerd starts with the file as it is in between."""
        config = ("--config", str(docker.file))
        docker.stop()
        (docker.home / "pid").unlink(missing_ok=True)
        before = docker.file.read_bytes()
        try:
            must("install", "docker", *config, "--set-as-default", "--policy", "dev")
            docker.start()
            assert bounding(docker.tried().out) == AGENT.caps
            docker.stop()
            must("uninstall", "docker", *config)
            assert docker.file.read_bytes() == before
        finally:
            docker.start()

    def test_what_dockerd_takes_for_a_syntax_error(self, docker: Plain, shim: Callable[..., Result]) -> None:
        """We refuse what it refuses: a comment, a byte order mark, a comma too many."""
        where = docker.home / "broken.json"
        for text, line in (('{ // x\n"debug": true }', ":1"), ("\ufeff{}", ":1"), ('{\n"debug": true,\n}', ":3")):
            where.write_text(text)
            found = shim("install", "docker", "--config", str(where))
            assert found.code == 1 and found.err.startswith(f"install: {where}{line}: asked "), str(found)
            assert len(found.err.splitlines()) == 1 and where.read_text() == text
            theirs = docker.room.run([tool("dockerd"), "--config-file", str(where)], timeout=30)
            assert theirs.code != 0 and str(where) in theirs.err, str(theirs)

    def test_file_system_that_is_read_only(self, docker: Plain, shim: Callable[..., Result]) -> None:
        place = docker.home / "ro"
        place.mkdir()
        script = f"mount -t tmpfs -o mode=755 tmpfs {place} && echo '{{}}' > {place}/daemon.json"
        assert docker.room.run(["sh", "-c", f"{script} && mount -o remount,ro {place}"]).code == 0
        try:
            found = shim("install", "docker", "--config", f"{place}/daemon.json", "--policy", "web")
            assert found.code == 1 and "Read-only file system" in found.err, str(found)
            assert len(found.err.splitlines()) == 1
            assert not (docker.room.base / "bin/agentshim-web").is_symlink(), "the link came first, and is gone again"
        finally:
            docker.room.run(["umount", str(place)])


# ---------------------------------------------------------------- containerd


class Cri(Containerd):
    """A containerd with its CRI plugin, and a file that says little."""

    def __init__(self, room: Room, home: Path, archive: Archive) -> None:
        super().__init__(room, home, archive)
        self._file.write_text(
            f'version = 2  # ours\nroot = "{home}/root"\nstate = "{home}/state"\n[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.grpc.v1.cri".cni]\n  conf_dir = "{home}/cni"  # empty\n'
        )

    @property
    def file(self) -> Path:
        return self._file

    def dump(self, file: Path | None = None) -> Any:
        """What containerd itself reads of its file, with all defaults."""
        done = self.room.run([tool("containerd"), "--config", str(file or self.file), "config", "dump"])
        assert done.code == 0, str(done)
        return tomllib.loads(done.out)["plugins"]["io.containerd.grpc.v1.cri"]

    def has_cri(self) -> bool:
        rows = [line.split() for line in self.must("plugins", "list").splitlines()]
        return ["io.containerd.grpc.v1", "cri"] in [row[:2] for row in rows if row[-1:] == ["ok"]]


@pytest.fixture
def cri(the_room: Room, archive: Archive, tmp_path: Path) -> Cri:
    needs("containerd", "ctr", "runc")
    home = the_room.base / f"ci{len(list(the_room.base.glob('ci*')))}"
    home.mkdir(mode=0o755)
    return Cri(the_room, home, archive)


class TestContainerd:
    def test_what_it_reads(self, cri: Cri, must: Callable[..., str]) -> None:
        before, bytes_before = cri.dump(), cri.file.read_bytes()
        assert set(before["containerd"]["runtimes"]) == {"runc"}
        must("install", "containerd", "--config", str(cri.file), "--policy", "dev", "--set-as-default")
        after = cri.dump()
        runtimes = after["containerd"]["runtimes"]
        assert set(runtimes) == {"runc", "agentshim", "agentshim-dev"}
        for name in ("agentshim", "agentshim-dev"):
            assert runtimes[name]["options"] == {"BinaryName": str(cri.room.base / "bin" / name)}
            assert runtimes[name]["runtime_type"] == "io.containerd.runc.v2"
            assert runtimes[name]["pod_annotations"] == ["agentshim.*"]
        assert runtimes["runc"]["runtime_type"] == before["containerd"]["runtimes"]["runc"]["runtime_type"]
        assert after["containerd"]["default_runtime_name"] == "agentshim"
        assert after["cni"] == before["cni"]
        must("uninstall", "containerd", "--config", str(cri.file))
        assert cri.dump() == before and cri.file.read_bytes() == bytes_before

    def test_cri_starts_with_it(self, cri: Cri, must: Callable[..., str]) -> None:
        """Its plugin checks the table when it is loaded: the default runtime must be one of it."""
        must("install", "containerd", "--config", str(cri.file))
        cri.start()
        try:
            assert cri.has_cri()
        finally:
            cri.stop()

    def test_why_runc_is_written_too(self, cri: Cri) -> None:
        """A table of runtimes takes the place of containerd's own: without runc in it CRI is not there."""
        head = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.agentshim'
        with open(cri.file, "a", encoding="utf-8") as file:
            file.write(f'[{head}]\nruntime_type = "io.containerd.runc.v2"\n')
        assert set(cri.dump()["containerd"]["runtimes"]) == {"agentshim"}
        cri.start()
        try:
            assert not cri.has_cri()
        finally:
            cri.stop()

    def test_why_version_2_has_no_drop_in(
        self, cri: Cri, must: Callable[..., str], shim: Callable[..., Result]
    ) -> None:
        """containerd 1.x takes all of a plugin from one file; where the main file's is not read, we say so."""
        other = cri.home / "conf.d/mine.toml"
        other.parent.mkdir(mode=0o755)
        head = '[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        other.write_text(f"version = 2\n{head}no_pivot = true\n")
        text = cri.file.read_text()
        cri.file.write_text(f'imports = ["{other.parent}/*.toml"]\n{text}')
        assert cri.dump()["cni"]["conf_dir"] != f"{cri.home}/cni", "the main file's table is not read any more"
        found = shim("install", "containerd", "--config", str(cri.file))
        assert found.code == 1 and f"--config {other}" in found.err, str(found)
        must("install", "containerd", "--config", str(other))
        assert "agentshim" in cri.dump()["containerd"]["runtimes"]

    def test_version_3_is_only_parsed(self, cri: Cri, must: Callable[..., str]) -> None:
        """containerd 2.x reads version 3; where there is only 1.x, nobody but a TOML parser has judged the file."""
        version = cri.room.run([tool("containerd"), "--version"]).out.split()[2].lstrip("v")
        cri.file.write_text('version = 3\nimports = ["conf.d/*.toml"]\n')
        must("install", "containerd", "--config", str(cri.file))
        drop_in = cri.home / "conf.d/agentshim.toml"
        doc = tomllib.loads(drop_in.read_text())
        entry = doc["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["agentshim"]
        assert entry["options"]["BinaryName"] == str(cri.room.base / "bin/agentshim")
        if version.startswith("1."):
            pytest.skip(
                f"SKIPPED LOUDLY: containerd {version} does not read version 3: the drop-in was parsed, not used"
            )
        done = cri.room.run([tool("containerd"), "--config", str(cri.file), "config", "dump"])
        found = tomllib.loads(done.out)["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
        assert found["agentshim"]["options"]["BinaryName"] == entry["options"]["BinaryName"] and "runc" in found


# ---------------------------------------------------------------- podman


class Usual(Podman):
    """podman with its files in the usual places, which are the room's: drop-ins are read there alone."""

    def __init__(self, room: Room, home: Path, archive: Archive) -> None:
        super().__init__(room, home, archive)
        lines = [line for line in self._config().splitlines() if not line.startswith(("agentshim", "runtime_supports"))]
        place = "/etc/containers/containers.conf"
        done = room.run(["sh", "-c", f"mkdir -p /etc/containers && cat > {place}"], input="\n".join(lines))
        assert done.code == 0, str(done)
        self.env = {}

    def tried(self, *flags: str, image: tuple[str, ...] = ()) -> Result:
        where = [one for one in flags if one.startswith("--runtime")]
        words = [one for one in flags if one not in where]
        parent = f"--cgroup-parent=/{self.room.base.name}"
        return self.do(*where, "run", "--rm", "--network=none", parent, *words, self.image(BUSYBOX), *CAPABILITIES)


@pytest.fixture(scope="module")
def podman(the_room: Room, archive: Archive) -> Iterator[Usual]:
    needs("podman", "conmon", "runc")
    home = the_room.base / "pi"
    home.mkdir(mode=0o711)
    with bridge(the_room):
        engine = Usual(the_room, home, archive)
        try:
            yield engine
        finally:
            engine.remove_all()
            the_room.run(["rm", "-rf", "/etc/containers/containers.conf", "/etc/containers/containers.conf.d"])


class TestPodman:
    def test_install_and_uninstall(self, podman: Usual, must: Callable[..., str], shim: Callable[..., Result]) -> None:
        assert podman.tried("--runtime=agentshim").code != 0, "not known yet"
        told = must("install", "podman", "--policy", "dev")
        assert "/etc/containers/containers.conf.d/agentshim.conf: agentshim, agentshim-dev" in told
        found = podman.tried("--runtime=agentshim")
        assert (found.code, bounding(found.out)) == (0, AGENT.caps), str(found)
        assert bounding(podman.tried("--runtime=agentshim-dev").out) & ~AGENT.caps
        assert bounding(podman.tried().out) != AGENT.caps
        info = podman.must(
            "--runtime=agentshim", "info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}"
        )
        assert info == f"agentshim {podman.room.base}/bin/agentshim"

        start = ("--runtime=agentshim", "run", "-d", "--network=none", f"--cgroup-parent=/{podman.room.base.name}")
        name = podman.must(*start, podman.image(BUSYBOX), *SLEEP)
        refused = shim("uninstall", "podman")
        assert refused.code == 1 and name[:12] in refused.err, str(refused)
        podman.remove(name)
        must("uninstall", "podman")
        assert podman.tried("--runtime=agentshim").code != 0
        assert podman.tried().code == 0

    def test_default(self, podman: Usual, must: Callable[..., str]) -> None:
        must("install", "podman", "--set-as-default")
        assert podman.must("info", "--format", "{{.Host.OCIRuntime.Name}}") == "agentshim"
        assert bounding(podman.tried().out) == AGENT.caps
        must("uninstall", "podman")
        assert podman.must("info", "--format", "{{.Host.OCIRuntime.Name}}") == "runc"

    def test_refusals_are_read_without_runtime_supports_json(self, podman: Usual, must: Callable[..., str]) -> None:
        must("install", "podman")
        found = podman.tried("--runtime=agentshim", "--volume=/:/host")
        assert found.code != 0 and expect.REFUSAL.search(found.err), str(found)
        must("uninstall", "podman")

    def test_a_file_of_its_own(self, podman: Usual, must: Callable[..., str]) -> None:
        """CONTAINERS_CONF names one file, and podman reads no other."""
        file = podman.home / "containers.conf"
        before = file.read_text().replace("agentshim", "other")
        file.write_text(before)
        must("install", "podman", "--config", str(file))
        env = {"CONTAINERS_CONF": str(file)}
        found = podman.must("--runtime=agentshim", "info", "--format", "{{.Host.OCIRuntime.Path}}", env=env)
        assert found == f"{podman.room.base}/bin/agentshim"
        must("uninstall", "podman", "--config", str(file))
        assert file.read_text() == before


# ---------------------------------------------------------------- CRI-O


def test_crio(the_room: Room, must: Callable[..., str]) -> None:
    """CRI-O reads its drop-in; where it is not installed nobody but a TOML parser has judged the file."""
    must("install", "crio", "--set-as-default")
    place = "/etc/crio/crio.conf.d/agentshim.conf"
    doc = tomllib.loads(the_room.run(["cat", place]).out)
    assert doc["crio"]["runtime"]["runtimes"]["agentshim"]["runtime_path"] == str(the_room.base / "bin/agentshim")
    if tool("crio"):
        shown = tomllib.loads(the_room.run([tool("crio"), "config"]).out)["crio"]["runtime"]
        assert shown["default_runtime"] == "agentshim" and shown["runtimes"]["agentshim"]["runtime_type"] == "oci"
    must("uninstall", "crio")
    assert the_room.run(["ls", "/etc/crio/crio.conf.d"]).out == ""
    if not tool("crio"):
        pytest.skip(
            "SKIPPED LOUDLY: crio is not installed (Debian 12 has no package): its drop-in was parsed, not used"
        )


def test_agent_is_the_policy_of_the_plain_name(docker: Plain, must: Callable[..., str]) -> None:
    """What a container of the new runtime really has, asked of the kernel."""
    config = ("--config", str(docker.file))
    must("install", "docker", *config, "--reload")
    wait_for(lambda: "agentshim" in docker.runtimes(), 10, "dockerd to know agentshim")
    words = ("run", "--rm", "--network=none", "--runtime=agentshim", docker.image(BUSYBOX))
    found = docker.do(*words, "sh", "-c", evidence.SCRIPT)
    assert found.code == 0, str(found)
    assert not expect.excess(evidence.parsed(found.out), AGENT, HOST)
    must("uninstall", "docker", *config, "--reload")
