"""Scripts that put a program to work in a container: threads, subprocesses, sockets, files. Each ends with `done`.

Belongs here: texts, by the program that they need. Next door: `test_programs` runs them. The working directory is a
volume whose files may be executed; /tmp is small and noexec, so nothing is built there.
"""

from __future__ import annotations

import shutil

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # in containers
MUSL_SHELL = "/usr/lib/x86_64-linux-musl/bin/mksh"  # Debian's package mksh brings one that is linked with musl

PYTHON = r"""
import asyncio, multiprocessing, socket, sqlite3, subprocess, sys, tempfile, threading
family, address = (socket.AF_INET, ("127.0.0.1", 0)) if sys.argv[1] == "inet" else (socket.AF_UNIX, "/tmp/socket")
out = []
threads = [threading.Thread(target=lambda: out.append(subprocess.check_output(["echo", "x"]))) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def child():
    return await (await asyncio.create_subprocess_exec("true")).wait()
assert asyncio.run(child()) == 0
server = socket.socket(family); server.bind(address); server.listen()
client = socket.socket(family); client.connect(server.getsockname())
server.accept()[0].sendall(b"hi"); assert client.recv(2) == b"hi"
assert family == socket.AF_UNIX or socket.if_nameindex()[0][1] == "lo"
sqlite3.connect(tempfile.mktemp()).execute("create table a(b)")
assert len(out) == 8
print("done")
"""
NODE = r"""
const { Worker } = require("worker_threads"), cp = require("child_process"), os = require("os"), net = require("net");
if (!os.networkInterfaces().lo) throw "no lo";
if (cp.execSync("echo sub").toString() != "sub\n") throw "no sub";
require("dns").lookup("localhost", error => { if (error) throw error; });
const server = net.createServer(s => s.end("hi")).listen(0, "127.0.0.1", () => {
  net.connect(server.address().port, "127.0.0.1").on("data", d => {
    server.close();
    new Worker("require('fs').writeFileSync('/tmp/w','1')", { eval: true }).on("exit", c => {
      if (c) throw c; console.log("done"); });
  });
});
"""
JAVA = r"""
public class T { public static void main(String[] a) throws Exception {
  Thread[] t = new Thread[8];
  for (int i = 0; i < 8; i++) { t[i] = new Thread(() -> System.out.print("t")); t[i].start(); }
  for (Thread x : t) x.join();
  if (new ProcessBuilder("true").start().waitFor() != 0) throw new Error("no child");
  if (!java.net.NetworkInterface.getNetworkInterfaces().hasMoreElements()) throw new Error("no interfaces");
  try (var s = new java.net.ServerSocket(0); var c = new java.net.Socket("127.0.0.1", s.getLocalPort())) { s.accept(); }
  java.nio.channels.Selector.open(); java.nio.file.FileSystems.getDefault().newWatchService();
  System.out.println("\ndone"); } }
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
use std::io::{Read, Write};
fn main() {
  let h: Vec<_> = (0..4).map(|i| std::thread::spawn(move || i)).collect();
  assert_eq!(h.into_iter().map(|x| x.join().unwrap()).sum::<i32>(), 6);
  assert_eq!(std::process::Command::new("echo").arg("s").output().unwrap().stdout, b"s\n");
  let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
  let mut client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
  server.accept().unwrap().0.write_all(b"hi").unwrap();
  let mut got = String::new(); client.read_to_string(&mut got).unwrap(); assert_eq!(got, "hi");
  println!("done"); }
"""
GO = r"""
package main
import ("fmt"; "io"; "net"; "net/http"; "net/http/httptest"; "os"; "os/exec"; "os/signal"; "runtime"; "sync"; "syscall")
func main() {
	var wait sync.WaitGroup
	for i := 0; i < 8; i++ { wait.Add(1); go func() { defer wait.Done(); runtime.LockOSThread()
		if out, err := exec.Command("echo", "x").Output(); err != nil || string(out) != "x\n" { panic(err) } }() }
	wait.Wait()
	hello := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hi") }
	server := httptest.NewTLSServer(http.HandlerFunc(hello))
	answer, err := server.Client().Get(server.URL); if err != nil { panic(err) }
	if body, _ := io.ReadAll(answer.Body); string(body) != "hi" { panic("body") }
	if found, err := net.Interfaces(); err != nil || found[0].Name != "lo" { panic(err) }
	got := make(chan os.Signal, 1); signal.Notify(got, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1); <-got
	fmt.Println("done") }
"""
# A Go server of many threads and its client, both as Debian builds them.
CONTAINERD = r"""set -eE; trap 'echo "$BASH_COMMAND: exit $?" >&2; tail -5 log >&2' ERR
printf 'version = 2\nroot = "/work/root"\nstate = "/work/state"\n[grpc]\naddress = "/work/socket"\n' > config.toml
containerd --config config.toml > log 2>&1 & server=$!
for i in $(seq 100); do [ -S socket ] && break; sleep 0.1; done
ctr -a socket namespaces create one; ctr -a socket namespaces ls | grep -q one
head -c 1m /dev/zero > blob; ctr -a socket content ingest --expected-size 1048576 blob < blob
ctr -a socket content ls | grep -q 1.049MB
[ $(grep Threads /proc/$server/status | cut -f2) -gt 1 ]
kill $server; wait $server; echo done"""
# Go's os/exec: docker asks each of its plugins for its name by running it.
DOCKER = r"""set -e; mkdir -p .docker/cli-plugins
cat > .docker/cli-plugins/docker-asc <<'X'
#!/bin/sh
[ "$1" != docker-cli-plugin-metadata ] || exec echo '{"SchemaVersion": "0.1.0", "Vendor": "us", "Version": "1"}'
echo "plugin $*"
X
chmod +x .docker/cli-plugins/docker-asc; /usr/bin/docker asc x | grep 'plugin asc x'; echo done"""
RIPGREP = r"""set -e; rg -j4 --pre cat -c root /etc/passwd
[ $(rg -j4 --files /usr/share/doc | wc -l) -gt 50 ]; echo done"""
GIT = r"""set -e; git init -q r; cd r; for i in $(seq 50); do echo $i > f$i; done; git add .
git -c user.name=a -c user.email=b commit -qm c; git -c pack.threads=2 repack -adq; git gc -q
[ $(git grep --threads=2 -l 7 | wc -l) = 5 ]; git clone -q file:///work/r ../s; git -C ../s fsck --strict
touch .git/git-daemon-export-ok; git daemon --listen=127.0.0.1 --base-path=/work & sleep 1
git clone -q git://127.0.0.1/r ../t; kill $!; [ $(git -C ../t log --oneline | wc -l) = 1 ]; echo done"""
CURL = r"""set -e; python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 1; seq 1000 > a; cp a b; cp a c
curl -sS --no-progress-meter --parallel -o 1 http://localhost:8000/a -o 2 http://localhost:8000/b -o 3 http://localhost:8000/c
kill $!; cmp a 1; cmp a 2; cmp a 3; echo done"""
BASH = 'for i in 1 2 3; do (echo $i | cat) & done; wait; coproc cat; exec 3<<<"x"; ls / >&2; echo done'
MKSH = r"""x=$(for i in 1 2 3; do (print $i | cat) & done; wait); [ "$(print "$x" | sort | tr -d '\n')" = 123 ]
cat <<HERE >/tmp/here
$$
HERE
[ "$(cat /tmp/here)" = $$ ]; cat |& print -p hi; read -p y; [ $y = hi ]
trap 'print trapped' TERM; kill -TERM $$; print done"""
BUSYBOX = r"""set -e; cd /tmp; for i in 1 2 3; do (echo $i | cat) & done; wait
tar cf t.tar -C /etc passwd; tar xf t.tar; find /etc -maxdepth 1 | sort | tail -n1
httpd -p 127.0.0.1:8000 -h /etc; wget -qO- http://127.0.0.1:8000/passwd | head -n1
killall httpd; echo done"""
COREUTILS = r"""find / -xdev -maxdepth 2 2>/dev/null | sort --parallel=4 | tail -1
df /tmp; dd if=/dev/zero of=/tmp/x count=1; timeout 5 true; echo done"""
PERL = "perl -e 'use threads; threads->create(sub {1})->join; print qx(echo done)'"
CARGO = "cargo new -q c --vcs none && cd c && cargo run -q --offline && echo done"
XZ = "tar cf t.tar -C /usr/share/common-licenses . && xz -T4 t.tar && tar xJf t.tar.xz && echo done"
NPM = r"""set -e; mkdir a b
printf '{"name": "b", "version": "1.0.0", "scripts": {"install": "echo > made"}}' > b/package.json
cd a; npm init -y >/dev/null; npm install --offline --no-audit --no-fund ../b; test -e node_modules/b/made; echo done"""
VENV = r"""set -e; python3 -m venv --without-pip v
v/bin/python -c 'import sys; assert sys.prefix == "/work/v"'; echo done"""


def source(name: str, text: str, then: str) -> str:
    """A script that writes `text` to the file `name` and goes on with `then`."""
    return f"cat > {name} <<'X'\n{text}\nX\n{then}"


def missing(program: str) -> str:
    """A reason to skip, loudly, or nothing."""
    found = shutil.which(program, path=PATH)
    return "" if found else f"LOUD: no {program} on this host: our policies are NOT tested with it"


# name: the program it needs, the script
AGENT = {
    "bash": ("bash", BASH),
    "dash and coreutils": ("dash", f"dash -c '{COREUTILS}'"),
    "busybox": ("busybox", source("t.sh", BUSYBOX, "busybox sh t.sh")),
    "musl shell": (MUSL_SHELL, source("t.sh", MKSH, f"{MUSL_SHELL} t.sh")),
    "perl": ("perl", PERL),
    "python": ("python3", source("t.py", PYTHON, "python3 t.py inet")),
    "python venv": ("python3", VENV),
    "node": ("node", source("t.js", NODE, "node t.js")),
    "npm": ("npm", NPM),
    "java": ("javac", source("T.java", JAVA, "javac T.java && java T")),
    "gcc and glibc": ("gcc", source("t.c", C, "gcc -pthread -o t t.c && ./t")),
    "gcc and musl": ("musl-gcc", source("t.c", C, "musl-gcc -static -o t t.c && ./t")),
    "rust": ("rustc", source("t.rs", RUST, "rustc t.rs && ./t")),
    "cargo": ("cargo", CARGO),
    "ripgrep (Rust)": ("rg", RIPGREP),
    "go": ("go", source("t.go", GO, "GOCACHE=/work/cache GO111MODULE=off go build -o t t.go && ./t")),
    "containerd (Go)": ("containerd", CONTAINERD),
    "docker and a plugin (Go)": ("/usr/bin/docker", DOCKER),
    "git": ("git", GIT),
    "curl": ("curl", CURL),
    "tar and xz": ("xz", XZ),
    "gdb alone": ("gdb", "gdb -batch -ex 'print 6*7' && echo done"),
}  # fmt: skip
# No network, nothing writable but /tmp, and nothing there or on a volume that could be executed.
LOCKED = {
    "bash": ("bash", BASH),
    "dash and coreutils": ("dash", f"dash -c '{COREUTILS}'"),
    "musl shell": (MUSL_SHELL, f"cd /tmp; {source('t.sh', MKSH, f'{MUSL_SHELL} t.sh')}"),
    "perl": ("perl", PERL),
    "python": ("python3", f"cd /tmp; {source('t.py', PYTHON, 'python3 t.py unix')}"),
    "gcc and glibc": ("gcc", f"cd /tmp; {source('t.c', C, 'gcc -pthread -o t t.c && ! ./t && /opt/glibc')}"),
    "gcc and musl": ("musl-gcc", f"cd /tmp; {source('t.c', C, 'musl-gcc -static -o t t.c && ! ./t && /opt/musl')}"),
    "ripgrep (Rust)": ("rg", RIPGREP),
}  # fmt: skip

# A package of our own: built, indexed, installed from a directory, removed, installed over HTTP (by the user _apt).
APT = r"""set -e
mkdir -p p/DEBIAN p/opt/asc p/usr/bin repo
printf '#!/bin/sh\necho asc-tiny runs\n' > p/usr/bin/asc-tiny; chmod 755 p/usr/bin/asc-tiny; echo x > p/opt/asc/file
cat > p/DEBIAN/control <<X
Package: asc-tiny
Version: 1.0
Architecture: all
Maintainer: a <a@example.org>
Description: tiny
X
cat > p/DEBIAN/postinst <<'X'
#!/bin/sh -e
chown www-data:www-data /opt/asc/file; chmod 2750 /opt/asc; id -u | tee /opt/asc/who
X
chmod 755 p/DEBIAN/postinst
dpkg-deb -b p repo/asc-tiny.deb; cd repo
(dpkg-deb -f asc-tiny.deb; echo "Filename: ./asc-tiny.deb"; echo "Size: $(stat -c %s asc-tiny.deb)"
echo "SHA256: $(sha256sum asc-tiny.deb | cut -d' ' -f1)") > Packages; cd ..
options="-q -y -o Dir::Etc::sourcelist=/work/list -o Dir::Etc::sourceparts=-"
from() { echo "deb [trusted=yes] $1 ./" > list; apt-get $options update; apt-get $options install asc-tiny; }
export DEBIAN_FRONTEND=noninteractive
from file:///work/repo
asc-tiny | grep -q runs; [ "$(stat -c '%U %a' /opt/asc/file /opt/asc | tr '\n' ' ')" = "www-data 644 root 2750 " ]
[ $(cat /opt/asc/who) = 0 ]; dpkg -s asc-tiny | grep -q 'ok installed'
apt-get -q -y purge asc-tiny; [ ! -e /usr/bin/asc-tiny ]
python3 -m http.server 8000 --bind 127.0.0.1 --directory repo > log 2>&1 & sleep 1
from http://127.0.0.1:8000/
asc-tiny | grep -q runs; grep -q 'asc-tiny.deb HTTP/1.1" 200' log; kill $!; echo done"""
