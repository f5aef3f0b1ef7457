"""`agentshim doctor` on made-up hosts: engines' registration, and the ways around us."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shim import state
from shim.cold.doctor import engines, registration, ways
from shim.cold.doctor.host import FAIL, OK, WARN
from tests.unit.made_up_host import LAUNCHER, Made, level, rows

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: engines' files are root's")
DAEMON = "/etc/docker/daemon.json"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def docker(made: Made, runtimes: dict[str, Any] | None = None, **more: Any) -> None:
    made.program("/usr/bin/dockerd", "exit 0")
    made.write(DAEMON, json.dumps({**({"runtimes": runtimes} if runtimes else {}), **more}))


def seen(made: Made, name: str) -> list[tuple[str, str, str]]:
    return rows(registration.registration(made.again()), name)


# Docker


def test_no_engine(made: Made) -> None:
    assert level(registration.registration(made.host), "engine.found") == WARN


def test_docker_is_registered(made: Made) -> None:
    docker(made, {"agentshim": {"path": LAUNCHER}})
    assert seen(made, "engine.registered") == [(OK, "docker", "agentshim; default runc")]
    assert seen(made, "engine.path") == [(OK, "docker agentshim", LAUNCHER)]


def test_docker_without_us(made: Made) -> None:
    docker(made, {"kata": {"path": "/usr/bin/kata"}})
    assert seen(made, "engine.registered") == [(WARN, "docker", "no runtime of ours")]
    (made.root / "etc/docker/daemon.json").unlink()
    assert seen(made, "engine.registered") == [(WARN, "docker", "no runtime of ours")]


def test_a_link_to_the_launcher_under_a_policy(made: Made) -> None:
    made.link("/usr/local/bin/agentshim-web", "agentshim")
    made.link("/usr/local/bin/agentshim-mine", "agentshim")
    docker(made, {one: {"path": f"/usr/local/bin/{one}"} for one in ("agentshim-web", "agentshim-mine")})
    assert [row[0] for row in seen(made, "engine.path")] == [OK, OK]
    assert seen(made, "engine.policy") == [
        (FAIL, "docker agentshim-mine", "agentshim-mine: no policy mine may be chosen by a link")
    ]


@pytest.mark.parametrize(
    "path, fault",
    [
        ("/opt/none", "not there"),
        ("agentshim", "not an absolute path"),
        ("", "not an absolute path"),
        ("/usr/bin/runc", "not agentshim's launcher"),
        ("/etc", "not an executable"),
        ("/etc/passwd", "not an executable"),
        ("/srv/agentshim", "/srv/agentshim is writable by others"),
        ("/home/u/agentshim", "/home/u belongs to uid 1000"),
    ],
)
def test_paths_that_do_not_hold(made: Made, path: str, fault: str) -> None:
    made.program("/usr/bin/runc", "exit 0")
    made.write("/etc/passwd", "")
    made.program("/srv/agentshim", "# /etc/agentshim/launch.conf").chmod(0o777)
    made.program("/home/u/agentshim", "# /etc/agentshim/launch.conf")
    os.chown(made.root / "home/u", 1000, 1000)
    docker(made, {"agentshim": {"path": path}})
    ((found, _, words),) = seen(made, "engine.path")
    assert found == FAIL and fault in words


def test_set_uid_launchers(made: Made) -> None:
    (made.root / LAUNCHER[1:]).chmod(0o4755)
    docker(made, {"agentshim": {"path": LAUNCHER}})
    assert seen(made, "engine.path")[0][0] == FAIL


def test_another_installation(made: Made) -> None:
    made.program("/opt/agentshim/bin/agentshim", "# /etc/agentshim/launch.conf")
    docker(made, {"agentshim": {"path": "/opt/agentshim/bin/agentshim"}})
    ((found, _, words),) = seen(made, "engine.path")
    assert found == WARN and "another installation" in words


def test_runtime_arguments(made: Made) -> None:
    docker(made, {"agentshim": {"path": LAUNCHER, "runtimeArgs": ["--debug"]}})
    assert level(registration.registration(made.again()), "engine.arguments") == WARN


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"runtimes": }'])
def test_a_broken_configuration(made: Made, text: str) -> None:
    docker(made)
    made.write(DAEMON, text)
    ((found, subject, words),) = seen(made, "engine.config")
    assert (found, subject) == (FAIL, "docker") and words.startswith(DAEMON)


@pytest.mark.parametrize("runtimes", [[], {"agentshim": None}, {"agentshim": []}, {"agentshim": {"path": 3}}, "x"])
def test_configurations_of_other_shapes(made: Made, runtimes: Any) -> None:
    docker(made, default=7, hosts="x")
    made.write(DAEMON, json.dumps({"runtimes": runtimes, "default-runtime": [], "hosts": {}}))
    assert seen(made, "engine.registered")


def test_a_running_dockerd_with_options(made: Made) -> None:
    made.write("/srv/d.json", json.dumps({"runtimes": {"agentshim": {"path": LAUNCHER}}}))
    made.process(
        41,
        "/usr/bin/dockerd",
        "--config-file=/srv/d.json",
        "--add-runtime",
        "agentshim-x=/no",
        "--default-runtime",
        "x",
    )
    made.process(42, "/usr/bin/dockerd", "--config-file", "/srv/absent.json")
    assert seen(made, "engine.registered") == [
        (OK, "docker (41)", "agentshim, agentshim-x; default x"),
        (WARN, "docker (42)", "no runtime of ours"),
    ]
    assert [row[0] for row in seen(made, "engine.path")] == [OK, FAIL]


def test_only_roots_processes_of_this_host_are_engines(made: Made) -> None:
    made.process(41, "/usr/bin/dockerd")
    os.chown(made.root / "proc/41", 1000, 1000)
    assert made.again().running("dockerd") == [], "a user's process of that name"
    made.process(42, "/usr/bin/dockerd")
    made.link("/proc/42/ns/pid", "pid:[2]")
    made.link("/proc/self/ns/pid", "pid:[1]")
    assert made.again().running("dockerd") == []


@contextmanager
def api(path: Path, told: dict[str, Any]) -> Iterator[None]:
    """An engine's API on a socket, which tells `told` to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "local"

        def log_message(self, *_: Any) -> None:
            pass

    path.parent.mkdir(parents=True, exist_ok=True)
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_running_dockerd_that_has_not_read_its_file(made: Made) -> None:
    docker(made, {"agentshim": {"path": LAUNCHER}}, hosts=["unix:///s"])
    made.process(41, "/usr/bin/dockerd")
    with api(
        made.root / "s", {"Runtimes": {"runc": {"path": "runc"}}, "DefaultRuntime": "runc", "ServerVersion": "28"}
    ):
        assert seen(made, "engine.live") == [(FAIL, "docker (41) agentshim", "the running engine has not read this")]
    with api(made.root / "s2", {"Runtimes": {"agentshim": {"path": LAUNCHER}}, "DefaultRuntime": "agentshim"}):
        docker(made, {"agentshim": {"path": LAUNCHER}}, hosts=["unix:///s2"])
        assert seen(made, "engine.live") == []
        assert seen(made, "engine.registered") == [(OK, "docker (41)", "agentshim; default agentshim")]


def started(made: Made, pid: int, ago: float) -> None:
    """A process that began so many seconds ago."""
    ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - ago) * os.sysconf("SC_CLK_TCK"))
    made.write(f"/proc/{pid}/stat", f"{pid} (a ) b) S " + "0 " * 18 + f"{ticks} 0\n")


@pytest.mark.parametrize(
    "program, words, path, text",
    [
        ("containerd", ("--config", "/srv/c"), "/srv/c", "version = 2\n"),
        ("crio", ("--config-dir", "/srv/d"), "/srv/d/x.conf", "[crio.runtime]\n"),
        ("dockerd", (), "/etc/docker/daemon.json", "{}"),
    ],
)
def test_a_file_that_changed_since_its_engine_started(
    made: Made, program: str, words: tuple[str, ...], path: str, text: str
) -> None:
    made.process(50, f"/usr/bin/{program}", *words)
    file = made.write(path, text)
    started(made, 50, 100)
    ((found, _, said),) = seen(made, "engine.live")
    assert found == FAIL and said == f"{path}: changed since it started"
    os.utime(file, (time.time() - 200, time.time() - 200))
    assert seen(made, "engine.live") == []
    if program == "dockerd":
        made.write(path, json.dumps({"hosts": ["unix:///s"]}))
        with api(made.root / "s", {"Runtimes": {}, "DefaultRuntime": "runc"}):
            assert seen(made, "engine.live") == [], "it answers what it knows"


# containerd, podman, CRI-O

CRI2 = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n{0}\n'
RUNTIME2 = """[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.agentshim]
runtime_type = "io.containerd.runc.v2"
{1}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.agentshim.options]
BinaryName = "{0}"
"""


def containerd(made: Made, text: str, *programs: str) -> None:
    for name in ("containerd", *programs):
        made.program(f"/usr/bin/{name}", "exit 0")
    made.write("/etc/containerd/config.toml", text)


def test_containerd_of_version_2(made: Made) -> None:
    passes = 'pod_annotations = ["agentshim.*"]'
    containerd(made, CRI2.format('default_runtime_name = "agentshim"') + RUNTIME2.format(LAUNCHER, passes), "kubelet")
    assert seen(made, "engine.registered") == [(OK, "containerd", "agentshim; default agentshim")]
    assert seen(made, "engine.path") == [(OK, "containerd agentshim", LAUNCHER)]
    assert not seen(made, "engine.annotations")
    containerd(made, CRI2.format("") + RUNTIME2.format(LAUNCHER, ""), "kubelet")
    assert seen(made, "engine.annotations")[0][0] == WARN


def test_containerd_of_version_3_with_imports(made: Made) -> None:
    containerd(made, 'version = 3\nimports = ["conf.d/*.toml", "/absent"]\n', "kubelet")
    assert seen(made, "engine.registered")[0][0] == WARN
    drop = """version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.agentshim.options]
BinaryName = '/usr/bin/runc'
"""
    made.write("/etc/containerd/conf.d/agentshim.toml", drop)
    made.program("/usr/bin/runc", "exit 0")
    assert seen(made, "engine.registered")[0][0] == OK
    assert seen(made, "engine.path")[0][0] == FAIL


def test_runc_by_name_and_us_by_path(made: Made) -> None:
    """An entry called runc whose BinaryName is ours is ours, and may be the default."""
    text = CRI2.format("") + RUNTIME2.format(LAUNCHER, "").replace("runtimes.agentshim", "runtimes.runc")
    containerd(made, text, "kubelet")
    assert seen(made, "engine.registered") == [(OK, "containerd", "runc; default runc")]
    assert rows(ways.choices(made.again()), "around.default-runtime") == [(OK, "containerd", "runc")]


@pytest.mark.parametrize("text, programs", [("", ()), ('disabled_plugins = ["cri"]\n', ("kubelet",))])
def test_containerd_that_nobody_asks_for_a_runtime(made: Made, text: str, programs: tuple[str, ...]) -> None:
    containerd(made, text, *programs)
    assert seen(made, "engine.registered")[0][0] == OK
    assert not rows(ways.choices(made.again()), "around.default-runtime")


def test_containerd_with_a_file_of_its_own(made: Made) -> None:
    made.write("/srv/c.toml", CRI2.format("") + RUNTIME2.format(LAUNCHER, ""))
    made.process(50, "/usr/bin/containerd", "-c", "/srv/c.toml")
    assert seen(made, "engine.registered") == [(OK, "containerd (50)", "agentshim; default runc")]
    made.process(51, "/usr/bin/containerd", "--config", "/var/run/docker/containerd/containerd.toml")
    assert len(seen(made, "engine.registered")) == 1, "dockerd's own"
    made.write("/srv/c.toml", "x = \n")
    assert seen(made, "engine.config")[0][0] == FAIL


def test_podman(made: Made) -> None:
    made.program("/usr/bin/podman", "exit 0")
    made.write("/usr/share/containers/containers.conf", '[engine]\nruntime = "crun"\n')
    assert seen(made, "engine.registered") == [(WARN, "podman", "no runtime of ours")]
    made.write("/etc/containers/containers.conf", f'[engine.runtimes]\nagentshim = ["/absent", "{LAUNCHER}"]\n')
    assert seen(made, "engine.path") == [(OK, "podman agentshim", LAUNCHER)]
    made.write("/etc/containers/containers.conf.d/10.conf", '[engine]\nruntime = "agentshim"\n')
    made.write("/etc/containers/containers.conf.d/20.conf", '[engine.runtimes]\nagentshim = ["/absent"]\n')
    made.write("/etc/containers/containers.conf.d/README", "not read")
    assert seen(made, "engine.registered") == [(OK, "podman", "agentshim; default agentshim")]
    assert seen(made, "engine.path")[0][0] == FAIL


def test_crio(made: Made) -> None:
    made.process(60, "/usr/bin/crio", "--config-dir", "/srv/crio.d")
    text = f'runtime_path = "{LAUNCHER}"\nruntime_root = "/run/a"\n'
    head = '[crio.runtime]\ndefault_runtime = "agentshim"\n[crio.runtime.runtimes.agentshim]\n'
    made.write("/srv/crio.d/a.conf", head + text)
    assert seen(made, "engine.registered") == [(OK, "crio (60)", "agentshim; default agentshim")]
    assert seen(made, "engine.path")[0][0] == OK


# ways around


def choice(made: Made) -> list[tuple[str, str, str]]:
    return rows(ways.choices(made.again()), "around.runtime-choice")


def test_who_may_choose_a_runtime(made: Made) -> None:
    docker(made, hosts=["unix:///run/d.sock"])
    assert choice(made) == [], "it does not listen"
    socket = made.write("/run/d.sock", "", 0o660)
    os.chown(socket, 0, 105)
    made.write("/etc/group", "docker:x:105:\n")
    made.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    ((found, _, words),) = choice(made)
    assert found == WARN and words.startswith("group docker may choose any runtime"), (
        "a directory service may know more"
    )
    socket.chmod(0o600)
    assert choice(made)[0][0] == OK
    socket.chmod(0o660)
    made.write("/etc/group", "docker:x:105:ann,bob\n")
    made.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\ncy:x:1000:105::/:/bin/sh\n")
    ((found, subject, words),) = choice(made)
    assert (found, subject) == (WARN, "docker unix:///run/d.sock") and words.endswith("ann, bob, cy")
    assert rows(ways.groups(made.again()), "around.docker-group") == [(WARN, "", "ann, bob, cy")]
    socket.chmod(0o666)
    assert choice(made)[0][0] == FAIL


def test_the_api_on_the_network(made: Made) -> None:
    docker(made, hosts=["tcp://0.0.0.0:2375"])
    assert choice(made)[0][0] == FAIL
    docker(made, hosts=["tcp://0.0.0.0:2376"], tlsverify=True)
    assert choice(made)[0][0] == WARN


@pytest.mark.parametrize(
    "words, shown",
    [
        (("-H", "0.0.0.0:2375"), "tcp://0.0.0.0:2375"),
        (("-H", ":2375"), "tcp://:2375"),
        (("-Htcp://[::]:1",), "tcp://[::]:1"),
        (("-H=1.2.3.4",), "tcp://1.2.3.4"),
        (("-DHtcp://a:1",), "tcp://a:1"),
        (("-DH", "a:1"), "tcp://a:1"),
        (("--host=a:1",), "tcp://a:1"),
        (("--host", "a:1"), "tcp://a:1"),
    ],
)
def test_addresses_as_dockerd_reads_them(made: Made, words: tuple[str, ...], shown: str) -> None:
    made.process(41, "/usr/bin/dockerd", *words)
    assert [row[:2] for row in choice(made)] == [(FAIL, f"docker (41) {shown}")]
    made.write("/proc/41/cmdline", "".join(f"{word}\0" for word in ("/usr/bin/dockerd", "--tlsverify", *words)))
    assert choice(made)[0][0] == WARN


def test_the_default_socket(made: Made) -> None:
    made.write("/var/run/docker.sock", "", 0o666)
    for hosts in ([], ["unix://"], [""]):
        docker(made, hosts=hosts)
        assert [row[:2] for row in choice(made)] == [(FAIL, "docker unix:///var/run/docker.sock")]
    made.write("/run/docker.sock", "", 0o666)
    docker(made, hosts=["fd://docker.socket"])
    assert [row[0] for row in choice(made)] == [FAIL]


def test_a_socket_of_somebody_elses(made: Made) -> None:
    docker(made, hosts=["unix:///s"])
    os.chown(made.write("/s", "", 0o600), 1000, 0)
    ((found, _, words),) = choice(made)
    assert found == FAIL and words.startswith("uid 1000 owns it")


def test_a_socket_with_an_access_list(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    docker(made, hosts=["unix:///s"])
    made.write("/s", "", 0o660)
    assert choice(made)[0][0] == OK
    monkeypatch.setattr(os, "getxattr", lambda path, name: name.encode())
    ((found, _, words),) = choice(made)
    assert found == WARN and words.startswith("an access list")


def test_nobody_in_the_group(made: Made) -> None:
    assert rows(ways.groups(made.host)) == [(OK, "around.docker-group", "nobody")]
    made.write("/etc/group", "docker:x:105:\nbad\n::\n")
    assert rows(ways.groups(made.again())) == [(OK, "around.docker-group", "nobody")]


def test_the_default_runtime(made: Made) -> None:
    docker(made, {"agentshim": {"path": LAUNCHER}})
    assert rows(ways.choices(made.again()), "around.default-runtime")[0][0] == WARN
    docker(made, {"agentshim": {"path": LAUNCHER}}, **{"default-runtime": "agentshim"})
    assert rows(ways.choices(made.again()), "around.default-runtime")[0][0] == OK


def test_buildkit_of_dockerd(made: Made) -> None:
    made.program("/usr/sbin/runc", "exit 0")
    made.process(41, "/usr/bin/dockerd")
    ((found, subject, words),) = rows(ways.builders(made.again()), "around.buildkit")
    assert (found, subject) == (WARN, "docker (41)") and "runs /usr/sbin/runc" in words
    made.write("/proc/41/environ", f"PATH=/bin\0{ways.BUILDER}={LAUNCHER}\0")
    assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == OK
    made.write("/proc/41/environ", f"{ways.BUILDER}=/usr/sbin/runc\0")
    assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == WARN


def test_a_dockerd_that_cannot_be_pointed_elsewhere(made: Made) -> None:
    docker(made, hosts=["unix:///s"])
    made.process(41, "/usr/bin/dockerd", environment=f"{ways.BUILDER}={LAUNCHER}\0")
    with api(made.root / "s", {"Runtimes": {}, "ServerVersion": "20.10.24+dfsg1"}):
        assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == WARN
    (made.root / "s").unlink()
    with api(made.root / "s", {"Runtimes": {}, "ServerVersion": "29.1.0"}):
        assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == OK


def test_buildkitd(made: Made) -> None:
    made.process(70, "/usr/bin/buildkitd")
    assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == WARN
    made.write("/etc/buildkit/buildkitd.toml", f'[worker.oci]\nbinary = "{LAUNCHER}"\n')
    assert rows(ways.builders(made.again()), "around.buildkit")[0][0] == OK
    made.process(71, "/usr/bin/buildkitd", "--oci-worker-binary=/usr/sbin/runc")
    assert [row[0] for row in rows(ways.builders(made.again()), "around.buildkit")] == [OK, WARN]


def test_mapped_users_of_containerd(made: Made) -> None:
    assert not list(ways.uidmaps(made.host))
    made.program("/usr/bin/containerd", "exit 0")
    assert level(ways.uidmaps(made.host), "around.uidmap") == WARN


# containers that we never saw


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What stands for our records."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(state, "records", lambda: found)
    return found


def found_unseen(made: Made) -> list[tuple[str, str, str]]:
    return rows(ways.unseen(made.again()), "around.unseen")


def test_containers_that_we_never_saw(made: Made, records: list[dict[str, str]]) -> None:
    assert found_unseen(made) == [(OK, "", "none; 0 of ours; looked at no directory of any delegate's")]
    places = [
        "/run/runc/a",
        "/run/containerd/runc/k8s.io/b",
        "/run/docker/runtime-runc/moby/c",
        "/run/docker/runtime-agentshim/moby/d",
    ]
    for place in places:
        made.container(place)
    made.container("/run/crun/e", crun=True)
    assert {row[1] for row in found_unseen(made)} == {*places, "/run/crun/e"}
    assert {row[0] for row in found_unseen(made)} == {WARN}
    for place in [*places, "/run/crun/e"]:
        root, _, name = place.rpartition("/")
        records.append({"root": f"{made.root}{root}", "id": name})
    looked = "/run/runc, /run/crun, /run/containerd/runc/k8s.io"
    ((found, _, words),) = found_unseen(made)
    assert found == OK and words.startswith(f"none; 5 of ours; looked at {looked}, /run/docker/runtime-")
    records[0]["root"] = "/elsewhere"
    assert [row[1] for row in found_unseen(made)] == ["/run/runc/a"], "an id alone is not enough"


def test_containers_that_have_ended(made: Made, records: list[dict[str, str]]) -> None:
    made.container("/run/runc/gone", pid=4194304)
    made.container("/run/runc/reused", pid=1)
    made.write("/run/runc/torn/state.json", "{")
    made.write("/run/runc/lock", "")
    assert found_unseen(made) == [(OK, "", "none; 0 of ours; looked at /run/runc")]


def test_a_record_of_a_container_that_was_made_again_without_us(made: Made, records: list[dict[str, Any]]) -> None:
    made.container("/run/runc/a")
    started, second = state._started(str(os.getpid())), os.sysconf("SC_CLK_TCK")
    records.append({"root": f"{made.root}/run/runc", "id": "a", "started": started - 59 * second})
    assert found_unseen(made)[0][0] == OK
    records[0]["started"] = started - 61 * second
    assert [row[:2] for row in found_unseen(made)] == [(WARN, "/run/runc/a")]


def test_the_roots_of_our_records_and_of_users(made: Made, records: list[dict[str, Any]]) -> None:
    records.append({"root": f"{made.root}/srv/own", "id": "gone"})
    made.container("/srv/own/a")
    made.container("/run/user/1000/crun/b", crun=True)
    made.container("/run/user/7/runc/c")
    made.write("/run/user/7/crun", "no directory")
    assert {row[1] for row in found_unseen(made)} == {"/srv/own/a", "/run/user/1000/crun/b", "/run/user/7/runc/c"}


@pytest.mark.parametrize(
    "state_of", ["/run/containerd", "/run/docker/containerd/daemon", "/srv/c", "/srv/d/containerd/daemon"]
)
def test_tasks_of_other_runtimes(made: Made, records: list[dict[str, Any]], state_of: str) -> None:
    """containerd's shims keep the first process of what they call, whichever runtime that is."""
    made.process(50, "/usr/bin/containerd", "--config", "/srv/c.toml")
    made.write("/srv/c.toml", 'version = 2\nstate = "/srv/c"\n')
    made.process(41, "/usr/bin/dockerd", "--exec-root", "/srv/d")
    top = f"{state_of}/{ways.TASKS}/ns"
    for name, text in (("a", str(os.getpid())), ("gone", "4194304"), ("torn", "x"), ("empty", "")):
        made.write(f"{top}/{name}/{ways.PID}", text)
    assert [row[:2] for row in found_unseen(made)] == [(WARN, f"{top}/a")]
    records.append({"root": "/elsewhere", "id": "a", "bundle": f"{made.root}{top}/a"})
    ((found, _, words),) = found_unseen(made)
    assert found == OK and top in words
    records.clear()
    made.container("/run/containerd/runc/ns/a")
    assert [row[1] for row in found_unseen(made)] == ["/run/containerd/runc/ns/a"], "once"


def test_directories_that_engines_name(made: Made, records: list[dict[str, str]]) -> None:
    made.process(41, "/usr/bin/dockerd", "--exec-root=/srv/d")
    made.container("/srv/d/runtime-runc/moby/a")
    made.process(50, "/usr/bin/containerd", "--config", "/srv/c.toml")
    made.write("/srv/c.toml", 'version = 2\nstate = "/srv/c"\n')
    made.container("/srv/c/runc/default/b")
    made.process(60, "/usr/bin/crio")
    made.write("/etc/crio/crio.conf", '[crio.runtime.runtimes.x]\nruntime_root = "/srv/o"\n')
    made.container("/srv/o/c", crun=True)
    assert {row[1] for row in found_unseen(made)} == {
        "/srv/d/runtime-runc/moby/a",
        "/srv/c/runc/default/b",
        "/srv/o/c",
    }


def test_very_many_containers(made: Made, records: list[dict[str, str]]) -> None:
    for number in range(ways.MOST + 5):
        made.container(f"/run/runc/c{number}")
    found = found_unseen(made)
    assert len(found) == ways.MOST + 1 and found[-1][2] == "5 more"


def test_an_engine_with_mounts_of_its_own(made: Made, records: list[dict[str, str]]) -> None:
    made.link("/proc/self/ns/mnt", "mnt:[1]")
    made.process(41, "/usr/bin/dockerd")
    made.link("/proc/41/ns/mnt", "mnt:[2]")
    made.write(f"/proc/41/root{DAEMON}", json.dumps({"runtimes": {"agentshim": {"path": LAUNCHER}}}))
    made.program(f"/proc/41/root{LAUNCHER}", "# /etc/agentshim/launch.conf")
    assert seen(made, "engine.registered")[0][0] == OK
    assert rows(ways.unseen(made.again()), "around.elsewhere")[0][:2] == (WARN, "docker (41)")


def test_tables_of_the_wrong_shape() -> None:
    assert engines.table({"a": [1]}, "a", "b") == {}
    assert engines.table(None, "a") == {}
