"""Real programs of this host under our policies, in containers of real runc through agentshim.

A program that is missing is skipped, loudly. The engine asks for Docker's profile, or for one in its shape: the filter
is the meet of both.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from shim.cold.seccomp import seccomp_toml
from tests.root import workloads
from tests.root.debian import Debian, Maker, finished
from tests.unit import seccomp_inputs as inputs

USER = 1000


def test_the_filter_is_a_meet_with_dockers() -> None:
    if not inputs.SHARED.is_dir():
        pytest.skip("LOUD: Docker's own profile is not among the shared data: programs ran under one in its shape")


@pytest.mark.parametrize("name", workloads.AGENT)
def test_under_agent(name: str, box: Maker) -> None:
    program, script = workloads.AGENT[name]
    if why := workloads.missing(program):
        pytest.skip(why)
    finished(box("agent").bash(script))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C program by the host's compilers: what an image would bring, where nothing that is written can be run."""
    place = tmp_path_factory.mktemp("compiled")
    (place / "t.c").write_text(workloads.C)
    out = {}
    for name, command in (("glibc", ["gcc", "-pthread"]), ("musl", ["musl-gcc", "-static"])):
        if not workloads.missing(command[0]):
            subprocess.run([*command, "-o", name, "t.c"], cwd=place, check=True)
            out[name] = place / name
    return out


@pytest.mark.parametrize("name", workloads.LOCKED)
def test_under_locked(name: str, box: Maker, compiled: dict[str, Path]) -> None:
    program, script = workloads.LOCKED[name]
    if why := workloads.missing(program):
        pytest.skip(why)
    one = box("locked", uid=USER)
    for libc, path in compiled.items():
        one.copy(path, f"/opt/{libc}")
    finished(one.bash(script))


def test_packages_under_dev(box: Maker) -> None:
    """apt and dpkg: files of many owners, a maintainer's script, downloads by another user; then removal."""
    if why := workloads.missing("apt-get"):
        pytest.skip(why)
    done = box("dev").bash(workloads.APT)
    finished(done)
    assert "unsandboxed" not in done.err, "the download ran as _apt"


def test_packages_under_agent_are_denied(box: Maker) -> None:
    if why := workloads.missing("apt-get"):
        pytest.skip(why)
    done = box("agent").bash(workloads.APT)
    assert done.code != 0 and "setgroups 65534 failed - setgroups (1: Operation not permitted)" in done.err, str(done)


@pytest.mark.parametrize("call", ["socketpair", "pipe2", "clone", "socket", "listen"])
def test_a_program_notices_a_call_that_its_profile_lacks(call: str, debian: Debian, box: Maker) -> None:
    """Without this, a workload that stopped working the profile would go on passing."""
    tree = seccomp_toml.profile("agent")
    for rule in tree["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != call]
    tree["syscalls"] = [rule for rule in tree["syscalls"] if rule["names"]]
    (debian.policies / "lacking.json").write_text(json.dumps(tree))
    name = debian.policy("lacking", 'base = "agent"\n[seccomp]\nfile = "lacking.json"\n')
    done = box(name).bash("echo begun\n" + workloads.AGENT["python"][1], timeout=60)
    assert done.out.startswith("begun\n") and (done.code != 0 or not done.out.endswith("done\n")), str(done)


def test_gdb_needs_its_join(debian: Debian, box: Maker) -> None:
    if why := workloads.missing("gdb"):
        pytest.skip(why)
    script = "gdb -batch -ex run -ex 'print 6*7' --args /bin/true; true"
    assert "exited normally" not in box("agent", seccomp=None).bash(script).out
    join = '[[seccomp.add]]\nnames = ["@debug"]\nwhy = "a debugger"\ndoc = "https://sourceware.org/gdb/"\n'
    name = debian.policy("debugger", f'base = "agent"\n{join}')
    assert "exited normally" in box(name, seccomp=None).bash(script).out


# Writes a program into memory and executes it there: memfd_create(2), and execveat(2) by its descriptor.
MEMORY = """
import os, sys
try:
    fd = os.memfd_create("program", int(sys.argv[1]))
except PermissionError:
    sys.exit("not made")
os.write(fd, open("/bin/echo", "rb").read())
try:
    os.execve(fd, ["echo", "executed"], {})
except PermissionError:
    sys.exit("not executed")
"""
PLAIN, SEALED, EXECUTABLE = 1, 1 | 8, 1 | 16  # MFD_CLOEXEC; with MFD_NOEXEC_SEAL; with MFD_EXEC (both Linux 6.3)


@pytest.mark.parametrize("policy", ["locked", "agent", "web", "dev"])
@pytest.mark.parametrize("flags", [PLAIN, SEALED, EXECUTABLE])
def test_memory_is_no_way_around_noexec(policy: str, flags: int, box: Maker) -> None:
    """Where /tmp is noexec, no memory file can be made that could be executed."""
    try:
        os.close(os.memfd_create("probe", flags))
    except OSError:
        pytest.skip(f"LOUD: this kernel has no memory files with flags {flags} (Linux 6.3)")
    done = box(policy, uid=USER, seccomp=None).run("python3", "-c", MEMORY, str(flags))
    wanted = "executed\n" if policy == "dev" else "not made\n"
    assert done.out + done.err == ("not executed\n" if flags == SEALED else wanted), str(done)


def test_noexec_stops_the_careless_only(box: Maker) -> None:
    """What the README says: an interpreter runs what it reads, from a /tmp that is noexec too."""
    script = "cd /tmp; printf '#!/bin/sh\necho ran\n' > t; chmod +x t; ./t; sh t"
    done = box("agent").bash(script)
    assert done.out == "ran\n" and "./t: Permission denied" in done.err, str(done)
