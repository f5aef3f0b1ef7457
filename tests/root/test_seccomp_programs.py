"""Real programs of this host under our profiles: each with threads and subprocesses, in a container of real runc.

The container sees the host's /usr, /etc and tool chains read-only. A program that is missing is skipped, loudly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shim.cold import prove
from tests.root import seccomp_bundle
from tests.root.seccomp_bundle import read_only
from tests.unit import seccomp_inputs as inputs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: containers cannot be started")

PYTHON = r"""
import asyncio, multiprocessing, socket, subprocess, sqlite3, ssl, tempfile, threading
out = []
threads = [threading.Thread(target=lambda: out.append(subprocess.check_output(["echo", "x"]))) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def child():
    return await (await asyncio.create_subprocess_exec("true")).wait()
assert asyncio.run(child()) == 0
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].sendall(b"hi"); assert client.recv(2) == b"hi"
assert socket.if_nameindex()[0][1] == "lo"
sqlite3.connect(tempfile.mktemp()).execute("create table a(b)")
print("done", len(out))
"""
NODE = r"""
const { Worker } = require("worker_threads"), cp = require("child_process"), os = require("os"), net = require("net");
if (!os.networkInterfaces().lo) throw "no lo";
if (cp.execSync("echo sub").toString() != "sub\n") throw "no sub";
const server = net.createServer(s => s.end("hi")).listen(0, "127.0.0.1", () => {
  net.connect(server.address().port, "127.0.0.1").on("data", d => {
    server.close();
    new Worker("require('fs').writeFileSync('/tmp/w','1')", { eval: true }).on("exit", c => console.log("done", c));
  });
});
"""
JAVA = r"""
public class T { public static void main(String[] a) throws Exception {
  Thread[] t = new Thread[8];
  for (int i = 0; i < 8; i++) { t[i] = new Thread(() -> System.out.print("t")); t[i].start(); }
  for (Thread x : t) x.join();
  new ProcessBuilder("true").start().waitFor();
  if (!java.net.NetworkInterface.getNetworkInterfaces().hasMoreElements()) throw new Error("no interfaces");
  java.nio.channels.Selector.open(); java.nio.file.FileSystems.getDefault().newWatchService();
  System.out.println(" done"); } }
"""
C = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *same(void *x) { return x; }
int main(void) {
  pthread_t t; void *r; int s; char b[9] = "";
  if (pthread_create(&t, 0, same, (void *)7) || pthread_join(t, &r)) return 1;
  if (system("true")) return 2;
  if (fork() == 0) _exit(3);
  wait(&s);
  FILE *p = popen("echo done", "r"); if (!fgets(b, 9, p)) return 4;
  printf("%s", b); return WEXITSTATUS(s) - 3; }
"""
RUST = r"""
fn main() {
  let h: Vec<_> = (0..4).map(|i| std::thread::spawn(move || i)).collect();
  assert_eq!(h.into_iter().map(|x| x.join().unwrap()).sum::<i32>(), 6);
  assert_eq!(std::process::Command::new("echo").arg("s").output().unwrap().stdout, b"s\n");
  println!("done"); }
"""
GIT = """set -e; git init -q r; cd r; echo x > a; git add a; git -c user.name=a -c user.email=b commit -qm c
git gc -q; git clone -q . ../s; git -C ../s log --oneline | wc -l; echo done"""
CURL = """python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 1; curl -sS 127.0.0.1:8000 >/dev/null
kill $!; echo done"""
COREUTILS = "find / -xdev -maxdepth 2 | sort | tail -1; df /tmp; dd if=/dev/zero of=/tmp/x count=1"
CARGO = "cargo new -q c --vcs none && cd c && cargo run -q --offline"
RUSTUP = "/root/.rustup/toolchains/stable-x86_64-unknown-linux-gnu/bin"

# name: the programs it needs, the script
PROGRAMS = {
    "bash": ("bash", 'for i in 1 2 3; do (echo $i | cat) & done; wait; coproc cat; exec 3<<<"x"; ls / >&2; echo done'),
    "dash and coreutils": ("dash", f"{COREUTILS}; echo done"),
    "perl": ("perl", "perl -e 'use threads; threads->create(sub {1})->join; print qx(echo done)'"),
    "python": ("python3", f"cat > t.py <<'X'\n{PYTHON}\nX\npython3 t.py"),
    "node": ("node", f"cat > t.js <<'X'\n{NODE}\nX\nnode t.js"),
    "java": ("java", f"cat > T.java <<'X'\n{JAVA}\nX\njava T.java"),
    "gcc and glibc": ("gcc", f"cat > t.c <<'X'\n{C}\nX\ngcc -pthread -o t t.c && ./t"),
    "musl": ("musl-gcc", f"cat > t.c <<'X'\n{C}\nX\nmusl-gcc -static -o t t.c && ./t"),
    "rust": (f"{RUSTUP}/rustc", f"cat > t.rs <<'X'\n{RUST}\nX\n{RUSTUP}/rustc t.rs && ./t"),
    "cargo": (f"{RUSTUP}/cargo", f"export PATH=$PATH:{RUSTUP}; {CARGO}; echo done"),
    "go": ("containerd", "containerd config default | wc -l; ctr --version; echo done"),
    "git": ("git", GIT),
    "curl": ("curl", CURL),
    "tar and xz": ("xz", "tar cJf t.tar.xz -C /etc passwd && tar xJf t.tar.xz && echo done"),
    "gdb alone": ("gdb", "gdb -batch -ex 'print 6*7' && echo done"),
}  # fmt: skip
TOOLS = [path for path in ("/usr", "/etc", "/root", "/var/lib") if os.path.isdir(path)]


def run(
    bundle: Path, policy: str, script: str, add: tuple[str, ...] = (), uid: int = 0
) -> subprocess.CompletedProcess[str]:
    """`script` by bash under a policy's profile met with moby's."""
    granted, _ = prove.granted(inputs.moby("SYS_ADMIN"), inputs.ours(policy, add=add), (1,))
    user = {"user": {"uid": uid, "gid": uid}}
    seccomp_bundle.write(bundle, granted, ["/bin/bash", "-c", script], list(map(read_only, TOOLS)), **user)
    for link in ("bin", "sbin", "lib", "lib64"):
        if not os.path.lexists(bundle / "rootfs" / link):
            os.symlink(f"usr/{link}", bundle / "rootfs" / link)
    config = bundle / "config.json"
    config.write_text(config.read_text().replace('"HOME=/tmp"', '"HOME=/tmp", "CARGO_HOME=/tmp/cargo"'))
    return seccomp_bundle.run("runc", bundle, timeout=300)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_under_agent(name: str, tmp_path: Path) -> None:
    program, script = PROGRAMS[name]
    if not shutil.which(program):
        pytest.skip(f"LOUD: no {program} on this host: the agent profile is NOT tested with it")
    done = run(tmp_path, "agent", script)
    assert done.returncode == 0 and "done" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["bash", "perl", "gcc and glibc", "musl"])
def test_programs_under_locked(name: str, tmp_path: Path) -> None:
    program, script = PROGRAMS[name]
    if not shutil.which(program):
        pytest.skip(f"LOUD: no {program} on this host")
    assert "done" in run(tmp_path, "locked", script).stdout


def test_packages_under_dev(tmp_path: Path) -> None:
    """dpkg unpacks and lists; apt reads its lists (there is no network in the container)."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("LOUD: no dpkg on this host")
    script = """set -e; mkdir -p p/DEBIAN p/opt; echo x > p/opt/x
printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: d\n' > p/DEBIAN/control
dpkg-deb -b p p.deb; dpkg --root=/tmp/r --force-not-root --unpack p.deb || true; dpkg-deb -x p.deb out; cat out/opt/x
apt-cache --no-generate policy bash | head -1; dpkg -l bash | tail -1; echo done"""
    done = run(tmp_path, "dev", script)
    assert done.returncode == 0 and "done" in done.stdout, done.stdout + done.stderr


def test_a_nested_sandbox_is_refused_clearly_and_works_where_it_is_granted(tmp_path: Path) -> None:
    """bwrap where it is installed, else unshare(1): both make a user namespace first."""
    script = "unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /tmp && echo done'"
    if shutil.which("bwrap"):
        script = "bwrap --unshare-user --ro-bind / / --proc /proc --dev /dev echo done"
    denied = run(tmp_path, "agent", script, uid=1000)  # root without capabilities may not map itself
    assert denied.returncode != 0 and "done" not in denied.stdout
    assert "ermi" in denied.stderr, f"a clear denial: {denied.stderr}"
    allowed = run(tmp_path, "agent", script, ("@user-namespaces",), uid=1000)
    assert allowed.returncode == 0 and "done" in allowed.stdout, allowed.stderr


def test_gdb_needs_its_join(tmp_path: Path) -> None:
    if not shutil.which("gdb"):
        pytest.skip("LOUD: no gdb on this host")
    script = "gdb -batch -ex run -ex 'print 6*7' --args /bin/true; true"
    assert "exited normally" not in run(tmp_path, "agent", script).stdout
    assert "exited normally" in run(tmp_path, "agent", script, ("@debug",)).stdout
