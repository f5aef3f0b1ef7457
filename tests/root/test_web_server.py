"""Debian's nginx under `web`: TLS on :443, workers of another user, and what each of the policy's capabilities is for.

net.ipv4.ip_unprivileged_port_start is 1024 here but in one test, so that a capability is what binds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from conformance.room import Result, wait_for
from shim import policy
from shim.cold.policy.policy_joins import resolve
from shim.dim import capabilities
from tests.root.debian import Box, Debian, Maker

pytestmark = [
    pytest.mark.skipif(not shutil.which("nginx"), reason="LOUD: no nginx here (package nginx): web is NOT tested"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="LOUD: no openssl here: web is NOT tested"),
]
PORTS = {"net.ipv4.ip_unprivileged_port_start": "1024"}
WWW_DATA = 33
TLS = "ssl_certificate /work/cert.pem; ssl_certificate_key /work/key.pem; ssl_protocols TLSv1.3;"
SITE = f"server {{ listen 443 ssl; {TLS} location / {{ alias /usr/share/common-licenses/; }} }}\n"
# Debian's own configuration but for the place of what it writes, so that it also starts where only /tmp can be written.
PLAIN = f"""user USER; pid /tmp/pid; error_log stderr; worker_processes 2; daemon off;
events {{ }}
http {{
    access_log off; server {{ listen PORT ssl; {TLS} location / {{ alias /usr/share/common-licenses/; }} }}
    client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d;
    scgi_temp_path /tmp/e;
}}
"""
CLIENT = """import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
with socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5) as plain:
    with context.wrap_socket(plain, server_hostname="localhost") as server:
        server.sendall(b"GET /GPL-2 HTTP/1.0\\r\\n\\r\\n")
        print(server.version(), b"".join(iter(lambda: server.recv(65536), b"")).decode())
"""
# What nginx says, and does not do, without each capability that web grants.
NEEDED = {
    "CHOWN": 'chown("/var/lib/nginx/body", 33) failed (1: Operation not permitted)',
    "DAC_OVERRIDE": 'open() "/var/log/nginx/error.log" failed (13: Permission denied)',
    "NET_BIND_SERVICE": "bind() to 0.0.0.0:443 failed (13: Permission denied)",
    "SETGID": "setgid(33) failed (1: Operation not permitted)",
    "SETUID": "setuid(33) failed (1: Operation not permitted)",
}


def certified(box: Box) -> Box:
    """`box` with a key and a certificate for localhost in its volume."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-out", "cert.pem")
    subprocess.run(["openssl", "req", "-x509", *curve, *name], cwd=box.work, check=True, capture_output=True)
    (box.work / "key.pem").chmod(0o644)  # nginx reads it as whatever user the container has
    return box


def asked(box: Box, pid: int, port: int = 443) -> Result:
    """One request over TLS, from a client in the container's network namespace that checks the certificate."""
    client = [sys.executable, "-c", CLIENT, str(box.work / "cert.pem"), str(port)]
    return box.room.run(["nsenter", f"--net=/proc/{pid}/ns/net", *client], timeout=20)


def served(box: Box, pid: int, port: int = 443) -> None:
    answer = wait_for(lambda: (one := asked(box, pid, port)).code == 0 and one, 10, "an answer over TLS", pause=0.2)
    assert answer.out.startswith("TLSv1.3 HTTP/1.1 200 OK") and "GNU GENERAL PUBLIC LICENSE" in answer.out


def stock(box: Box) -> Box:
    """Debian's nginx as it is installed, with one site."""
    box.put("/etc/nginx/sites-enabled/default", SITE)
    return certified(box)


def configure(box: Box, port: int) -> None:
    """PLAIN, for workers of the container's own user."""
    user = "root" if box.config["process"]["user"]["uid"] == 0 else "www-data"
    (box.work / "nginx.conf").write_text(PLAIN.replace("PORT", str(port)).replace("USER", user))


def status(pid: int) -> dict[str, str]:
    """/proc/<pid>/status."""
    with open(f"/proc/{pid}/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def workers(box: Box, pid: int) -> list[int]:
    """The children of `pid` that live: one may end while it is looked at."""
    found = []
    for one in box.pids():
        with suppress(FileNotFoundError, ProcessLookupError):
            if one != pid and status(one)["PPid"] == str(pid):
                found.append(one)
    return found


def held(pid: int) -> set[int]:
    """The capability sets of a process, as masks, without the bounding set."""
    return {int(value, 16) for key, value in status(pid).items() if key in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


def grant() -> list[str]:
    found: list[str] = resolve("web", policy.Config({})).sections["capabilities"]["grant"]
    return found


def test_nginx_as_debian_installs_it(box: Maker) -> None:
    one = stock(box("web", sysctl=PORTS))
    pid = one.start("nginx", "-g", "daemon off;")
    served(one, pid)
    assert one.exec("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "1024\n"
    granted = capabilities.mask_of(grant())
    assert status(pid)["Uid"].split() == ["0"] * 4 and held(pid) == {granted, 0}, "the master: no ambient set was asked"
    found = workers(one, pid)
    assert found
    for worker in found:
        seen = status(worker)
        assert (seen["Uid"].split(), seen["Gid"].split()) == ([str(WWW_DATA)] * 4, [str(WWW_DATA)] * 4)
        assert seen["Groups"] == str(WWW_DATA), "initgroups has replaced root's groups"
        assert held(worker) == {0} and seen["NoNewPrivs"] == "1" and seen["Seccomp"] == "2"


def test_nginx_reloads_and_quits_without_the_right_to_signal_its_workers(box: Maker) -> None:
    """KILL is not granted: root may not signal www-data, but nginx tells its workers through sockets."""
    one = stock(box("web", sysctl=PORTS))
    pid = one.start("nginx", "-g", "daemon off;")
    served(one, pid)
    before = set(workers(one, pid))
    one.exec("nginx", "-s", "reload")
    wait_for(lambda: (now := set(workers(one, pid))) and not now & before, 10, "new workers in the place of the old")
    served(one, pid)
    one.exec("nginx", "-s", "quit")
    wait_for(lambda: one.status() == "stopped", 10, "nginx to end")


def test_each_capability_of_web_is_told_here() -> None:
    assert set(NEEDED) == set(grant())


@pytest.fixture(params=NEEDED)
def without(request: pytest.FixtureRequest, debian: Debian) -> tuple[str, str]:
    """A capability, and a policy that is web without it."""
    web = resolve("web", policy.Config({})).sections
    scratch = "\n".join(f'"{path}" = {{ size = {one["size"]} }}' for path, one in web["paths"]["scratch"].items())
    names = ", ".join(f'"{name}"' for name in web["capabilities"]["grant"] if name != request.param)
    text = f"""base = "agent"
[capabilities]
add = [{{ names = [{names}], why = "web's but one" }}]
[paths.scratch]
{scratch}
[seccomp]
profile = "web"
"""
    return request.param, debian.policy(f"web-without-{request.param.lower().replace('_', '-')}", text)


def test_without_one_capability(without: tuple[str, str], box: Maker) -> None:
    capability, name = without
    one = stock(box(name, sysctl=PORTS))
    pid = one.start("nginx", "-g", "daemon off; error_log stderr;")
    wait_for(lambda: NEEDED[capability] in one.said(), 10, f"{NEEDED[capability]} among {one.said()!r}")
    if capability in ("SETGID", "SETUID"):  # the master lives, and listens, and has nobody to answer
        wait_for(lambda: not workers(one, pid), 5, "the workers to be gone")
        assert one.status() == "running"
    else:
        wait_for(lambda: one.status() == "stopped", 5, "nginx to give up")


@pytest.mark.parametrize("uid", [0, WWW_DATA])
@pytest.mark.parametrize("name", ["web", "agent"])
def test_the_same_container_under_agent_cannot_bind(name: str, uid: int, box: Maker) -> None:
    """As another user from the start, the capability must be asked in the ambient set, as `podman --user` does."""
    one = certified(box(name, uid=uid, sysctl=PORTS))
    configure(one, 443)
    sets = one.config["process"]["capabilities"]
    sets["inheritable"] = sets["ambient"] = ["CAP_NET_BIND_SERVICE"]
    pid = one.start("nginx", "-c", "/work/nginx.conf")
    if name == "web":
        served(one, pid)
        assert {status(worker)["Uid"].split()[0] for worker in workers(one, pid)} == {str(uid)}
    else:
        wait_for(lambda: one.status() == "stopped", 10, "nginx to give up")
        assert NEEDED["NET_BIND_SERVICE"] in one.said(), one.said()


def test_under_agent_only_the_port_is_in_the_way(box: Maker) -> None:
    one = certified(box("agent", uid=WWW_DATA, sysctl=PORTS))
    configure(one, 8443)
    served(one, one.start("nginx", "-c", "/work/nginx.conf"), 8443)


def test_dockers_own_parameter_opens_low_ports_to_all(box: Maker) -> None:
    one = certified(box("agent", uid=WWW_DATA, sysctl={"net.ipv4.ip_unprivileged_port_start": "0"}))
    configure(one, 443)
    served(one, one.start("nginx", "-c", "/work/nginx.conf"))
