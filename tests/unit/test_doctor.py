"""`agentshim doctor` on made-up hosts: versions, files, kernel and network, and what is printed.

Next door: test_doctor_engines.py has registration and ways around; conformance/engines/test_doctor.py real engines.
"""

from __future__ import annotations

import errno
import hashlib
import json
import marshal
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hooks import netlink, nft_ask
from shim import kernel as facts
from shim import policy
from shim.cold import doctor
from shim.cold.doctor import advisories, files, kernel, network, probes, versions
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host
from shim.cold.network import net_others
from shim.cold.seccomp import libseccomp
from shim.errors import HostError
from shim.verbs import gate
from tests.unit.made_up_host import Made, level, rows

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="SKIPPED LOUDLY: doctor's files are root's, and so must be these"
)
RUNC = "/usr/sbin/runc"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def runc(made: Made, version: str, more: str = "") -> None:
    made.program(RUNC, f'echo "runc version {version}"; echo "spec: 1.2.0"{more}')


# versions

ADVISORIES = {one.name: one for table in advisories.TABLE.values() for one in table}


@pytest.mark.parametrize(
    "name, mended, open_",
    [
        ("CVE-2019-5736", "1.0.0-rc7 1.0.0-rc93 1.0.0 1.1.5+ds1", "1.0.0-rc6 1.0.0~rc6+dfsg1 0.1.1"),
        ("CVE-2024-21626", "1.1.12 1.1.15 1.2.0-rc.1 1.3.0", "1.1.11 1.1.5+ds1 1.0.3"),
        ("CVE-2025-31133", "1.2.8 1.2.9 1.3.3 1.4.0-rc.3 1.4.0 1.5.0", "1.1.15 1.2.7 1.3.2 1.3.0-rc.1 1.4.0-rc.2"),
        ("CVE-2026-119101", "1.3.7 1.4.4 1.5.3 1.6.0-rc.2 1.7.0", "1.2.9 1.3.6 1.4.3 1.5.2 1.6.0-rc.1"),
        ("CVE-2026-30892", "1.18 1.18.2 1.27 1.30", "1.19 1.26"),
        ("CVE-2022-27650", "1.4.4 1.5 1.8.1", "1.4.3 1.3"),
        ("CVE-2019-9893", "2.4.0 2.5.4", "2.3.3"),
    ],
)
def test_which_releases_have_a_fix(name: str, mended: str, open_: str) -> None:
    for words, expected in ((mended, True), (open_, False)):
        for word in words.split():
            release = advisories.version(word)
            assert release and advisories.has_fix(ADVISORIES[name], release) is expected, word


def test_versions_are_read_with_their_candidates() -> None:
    assert advisories.version("runc version 1.4.0-rc.3+dev") == (1, 4, 0, 3)
    assert advisories.version("crun version 1.20") == (1, 20, 0, advisories.FINAL)
    assert advisories.version("none") is None


def test_a_new_delegate_has_no_known_flaw(made: Made) -> None:
    runc(made, "1.4.4")
    found = list(versions.delegate(made.host))
    assert {one.level for one in found} == {OK}
    assert len(rows(found, "delegate.advisory")) == len(advisories.RUNC)


def told(made: Made, name: str) -> tuple[str, str]:
    """Level and words for one advisory of the delegate."""
    (one,) = [row for row in rows(versions.delegate(made.again()), "delegate.advisory") if row[1].endswith(name)]
    return one[0], one[2]


def test_an_old_delegate_of_nobodys_fails(made: Made) -> None:
    runc(made, "1.1.11")
    assert told(made, "CVE-2024-21626")[0] == FAIL
    assert told(made, "CVE-2024-45310")[0] == WARN, "a flaw that opens nothing of ours is no failure"
    assert told(made, "CVE-2023-27561")[0] == OK


def test_a_backport_counts(made: Made) -> None:
    runc(made, "1.1.5+ds1")
    made.package("runc", "1.1.5+ds1-1+deb12u1", [RUNC], "  * CVE-2024-21626: closed\n")
    assert told(made, "CVE-2024-21626") == (OK, "1.1.5+ds1 had it, runc 1.1.5+ds1-1+deb12u1 mends it")
    seen, words = told(made, "CVE-2025-31133")
    assert seen == WARN and "unknown (the changelog does not name it)" in words


def test_a_package_without_a_changelog_is_unknown(made: Made) -> None:
    runc(made, "1.1.5")
    made.package("runc", "1.1.5-1", [RUNC], None)
    seen, words = told(made, "CVE-2024-21626")
    assert seen == WARN and "is not on this host" in words


def test_a_package_below_the_merged_bin(made: Made) -> None:
    """dpkg lists /sbin/runc where /sbin is a link."""
    runc(made, "1.1.5")
    made.package("runc", "1:1.1.5-1", ["/sbin/runc"], "CVE-2024-21626")
    assert told(made, "CVE-2024-21626")[0] == OK


def test_a_file_that_replaced_the_packages_is_nobodys(made: Made) -> None:
    runc(made, "1.1.4")
    made.package("runc", "1.1.5+ds1-1+deb12u1", [RUNC], "nothing of it")
    assert told(made, "CVE-2024-21626")[0] == FAIL


def test_a_changelog_does_not_speak_for_another_file(made: Made) -> None:
    """A release that was copied over the package's, of its version or of another."""
    runc(made, "1.1.5+ds1")
    made.package("runc", "1.1.5+ds1-1+deb12u1", [RUNC], "  * CVE-2024-21626: closed\n")
    assert told(made, "CVE-2024-21626")[0] == OK
    runc(made, "1.1.5+ds1", "; true")
    assert told(made, "CVE-2024-21626")[0] == FAIL
    assert "it is not the one that runc 1.1.5+ds1-1+deb12u1 brought" in told(made, "CVE-2024-21626")[1]
    runc(made, "1.1.4")
    made.package("runc", "1.1.5+ds1-1+deb12u1", [RUNC], "  * CVE-2024-21626: closed\n")
    seen, words = told(made, "CVE-2024-21626")
    assert seen == FAIL and "no package vouches for the file" in words and "another version" in words


def test_rpm(made: Made) -> None:
    digest = hashlib.sha256(made.program(RUNC, "echo runc version 1.1.9").read_bytes()).hexdigest()

    def rpm(digest: str) -> None:
        known = f"case $3 in [[]*) echo 'x /etc/a'; echo '{digest} {RUNC}';; *) echo 'runc 1.1.9-2';; esac"
        made.program(
            "/usr/bin/rpm", f'[ "$1" = -qf ] || exec echo "- fixes CVE-2024-21626"; [ "$4" = {RUNC} ] && {known}'
        )

    rpm(digest)
    assert told(made, "CVE-2024-21626")[0] == OK
    assert told(made, "CVE-2025-31133")[0] == WARN
    rpm("0" * 64)
    assert told(made, "CVE-2024-21626")[0] == FAIL, "another file is there by now"


def test_crun_is_judged_by_its_own_table(made: Made) -> None:
    made.program("/usr/bin/crun", "echo crun version 1.26; echo commit: x")
    assert told(made, "CVE-2026-30892")[0] == WARN
    assert told(made, "CVE-2025-24965")[0] == OK


def test_the_delegate_of_the_configuration(made: Made) -> None:
    made.write("/etc/agentshim/config.toml", 'delegate = "/opt/runc"\n')
    made.program("/opt/runc", "echo runc version 1.3.7")
    runc(made, "1.0.0")
    assert rows(versions.delegate(made.host))[0] == (OK, "delegate.found", "/opt/runc: runc version 1.3.7")


def test_delegates_that_cannot_be_had(made: Made) -> None:
    assert rows(versions.delegate(made.host))[0][:2] == (FAIL, "delegate.found")
    runc(made, "1.3.7")
    (made.root / "usr/sbin/runc").chmod(0o777)
    assert rows(versions.delegate(made.again()))[0][:2] == (FAIL, "delegate.found")
    made.program(RUNC, "echo nothing")
    assert "no version" in rows(versions.delegate(made.again()), "delegate.advisory")[0][2]
    made.program(RUNC, "exit 3")
    assert level(doctor.examined(made.again(), [("delegate", versions.delegate)]), "delegate.unchecked") == WARN


def test_a_libseccomp_that_the_delegate_brings(made: Made) -> None:
    runc(made, "1.4.4", '; echo "libseccomp: 2.3.3"')
    assert told(made, "CVE-2019-9893")[0] == FAIL
    runc(made, "1.4.4", '; echo "libseccomp: 2.6.1"')
    assert told(made, "GHSA-4q85-33p6-j5g6")[0] == OK


def test_our_libseccomp(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/usr/lib/libseccomp.so.2.5.4"
    made.write(path, "ELF")
    made.write("/proc/self/maps", f"7f00-7f01 r-xp 0000 00:00 1   {path}\n")
    monkeypatch.setattr(libseccomp, "version", lambda: (2, 5, 4))
    found = list(versions.library(made.host))
    assert level(found, "libseccomp.version") == OK
    assert [row[0] for row in rows(found, "libseccomp.advisory")] == [OK, WARN, WARN, WARN]
    made.package("libseccomp2:amd64", "2.5.4-1", [path], "GHSA-4q85-33p6-j5g6 GHSA-46fr-jh49-xvhx GHSA-2hqh-5c36-grrm")
    assert {one.level for one in versions.library(made.again())} == {OK}
    monkeypatch.setattr(libseccomp, "version", lambda: (2, 4, 4))
    assert level(versions.library(made.again()), "libseccomp.version") == FAIL


# files


def test_loose_places(made: Made, tmp_path: Path) -> None:
    host = made.host
    made.write("/opt/a/b/file", "x")
    assert host.loose("/opt/a/b/file") == ""
    (tmp_path / "opt/a").chmod(0o777)
    assert host.loose("/opt/a/b/file") == "/opt/a is writable by others (mode 0777)"
    (tmp_path / "opt/a").chmod(0o1777)
    assert host.loose("/opt/a/b/file") == "", "nobody can rename what root owns in a sticky directory"
    assert host.loose("/opt/a").startswith("/opt/a is writable"), "what it holds is anybody's"
    os.chown(tmp_path / "opt/a/b", 1000, 0)
    assert host.loose("/opt/a/b/file") == "/opt/a/b belongs to uid 1000"


def test_loose_places_behind_links(made: Made, tmp_path: Path) -> None:
    made.write("/srv/loose/x", "x", 0o666)
    made.link("/opt/x", "../srv/loose/x")
    assert made.host.loose("/opt/x") == "/srv/loose/x is writable by others (mode 0666)"
    made.link("/opt/abs", "/srv/loose/x")
    assert made.host.loose("/opt/abs").startswith("/srv/loose/x")
    made.link("/opt/round", "round")
    with pytest.raises(OSError, match="too many links"):
        made.host.loose("/opt/round")


def test_trees(made: Made) -> None:
    made.write("/etc/agentshim/policies/x.toml", "x")
    assert files._tree(made.host, "files.etc", policy.ETC).level == OK
    (made.root / "etc/agentshim/policies/x.toml").chmod(0o666)
    one = files._tree(made.host, "files.etc", policy.ETC)
    assert one.level == FAIL and one.found == "/etc/agentshim/policies/x.toml: owner 0, mode 0666"


def test_the_launcher(made: Made) -> None:
    def found() -> str:
        return level(files._launcher(made.again()), "files.launcher")

    path = made.root / "usr/local/bin/agentshim"
    assert found() == OK
    path.chmod(0o4755)
    assert found() == FAIL
    path.chmod(0o755)
    os.chown(path, 1000, 1000)
    assert found() == FAIL


def test_the_log_is_judged_as_its_writer_judges_it(made: Made) -> None:
    """Ubuntu's /var/log is 0775 root:syslog, and rsyslog needs that."""
    made.write("/etc/group", "syslog:x:104:\n")
    file = made.write(f"{files.LOG}/audit.jsonl", "")
    file.parent.chmod(0o750)
    above = file.parent.parent
    above.chmod(0o755)
    assert files._log(made.host).level == OK
    os.chown(above, 0, 104)
    above.chmod(0o775)
    one = files._log(made.host)
    assert one.level == WARN and "writable by group syslog" in one.found and "chown" not in one.todo
    for mode, place in ((0o777, above), (0o770, file.parent), (0o660, file)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert files._log(made.host).level == FAIL, place
        place.chmod(before & 0o7777)
    above.chmod(0o755)
    os.chown(file.parent, 1000, 0)
    assert files._log(made.host).level == FAIL
    file.parent.rename(above / "there")
    file.parent.symlink_to("there")
    assert files._log(made.host).level == FAIL


def test_the_state_directory(made: Made) -> None:
    assert files._run(made.host).level == OK
    (made.root / "run/agentshim").mkdir(parents=True, mode=0o700)
    assert files._run(made.host).level == OK
    for mode in (0o755, 0o750):
        (made.root / "run/agentshim").chmod(mode)
        assert files._run(made.host).level == FAIL


def test_policies_are_checked(made: Made) -> None:
    made.write("/etc/agentshim/config.toml", 'delegate = "/usr/sbin/runc"\n')
    assert rows(files.configuration(made.host)) == [
        (OK, "files.policies", "/etc/agentshim and its policies are well formed, and within the limit")
    ]
    made.write("/etc/agentshim/policies/bad.toml", 'schema = 1\nname = "bad"\nabut = "x"\n')
    found = rows(files.configuration(made.host))
    assert found and {row[0] for row in found} == {FAIL}
    assert any("bad.toml" in row[2] for row in found)


def test_stale_compiled_policies(made: Made) -> None:
    source = made.write("/etc/agentshim/policies/mine.toml", "schema = 1\n")
    form = {"format": policy.FORMAT, "source": {str(source): policy.record(os.lstat(source))}}
    made.write("/var/lib/agentshim/policies/mine.json", json.dumps(form), 0o600)
    assert level(files.compiled(made.host), "files.compiled") == OK
    source.write_text("schema = 1\n# edited\n")
    assert rows(files.compiled(made.host), "files.compiled") == [(WARN, "/var/lib/agentshim/policies", "mine")]
    made.write("/var/lib/agentshim/policies/gone.json", json.dumps({**form, "source": {}}), 0o600)
    assert rows(files.compiled(made.host), "files.compiled")[0][2] == "gone, mine"


def test_builtin_policies_that_were_edited(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "compiled"
    shutil.copytree(policy.COMPILED, copied)
    monkeypatch.setattr(policy, "COMPILED", str(copied))
    form = json.loads((copied / "web.json").read_text())
    (copied / "web.json").write_text(json.dumps({**form, "digest": "sha256:0"}))
    (found,) = files.builtin(made.host)
    assert found.level == FAIL and "web" in found.found.split(", ")


def test_byte_code_of_other_sources(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(gate._home())
    for name in ("main.py", "main.pyc", "hot"):
        (tmp_path / "shim").mkdir(exist_ok=True)
        shutil.copy2(home / "shim" / name, tmp_path / "shim" / name)
    monkeypatch.setattr(gate, "_home", lambda: str(tmp_path))
    monkeypatch.setattr(files, "_hot", lambda home: iter(()))
    monkeypatch.setattr(sys, "executable", (home / "native/build/python").read_text().strip())
    assert level(files.bytecode(made.host), "files.bytecode") == OK
    os.utime(tmp_path / "shim/main.py", (1, 1))
    assert level(files.bytecode(made.host), "files.bytecode") == WARN
    (tmp_path / "shim/main.pyc").write_bytes(b"torn")
    assert level(files.bytecode(made.host), "files.bytecode") == WARN


def test_hot_of_other_sources(tmp_path: Path) -> None:
    source = tmp_path / "shim/x.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    there = source.stat()
    for size, expected in ((there.st_size, []), (there.st_size + 1, ["hot is older than shim/x.py"])):
        group = marshal.dumps(([("shim/x.py", size, there.st_mtime_ns)], ()))
        begin = 8 + len(marshal.dumps((sys.version, {"run": (0, len(group))}), 1))
        head = marshal.dumps((sys.version, {"run": (begin, len(group))}), 1)
        (tmp_path / "shim/hot").write_bytes(b"%8d" % len(head) + head + group)
        assert list(files._hot(str(tmp_path))) == expected


def test_reading_is_bounded(made: Made) -> None:
    os.mkfifo(made.root / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        made.host.read("/fifo")
    made.write("/large", b"x" * (16 << 20) + b"x")
    with pytest.raises(OSError, match="too large"):
        made.host.read("/large")
    assert made.host.text("/absent") == ""
    assert Host().text("/proc/sys/kernel/seccomp/actions_logged"), "not one large read, which the kernel refuses"


# kernel


def refuse(number: int) -> Callable[..., None]:
    def probe(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return probe


def test_this_kernel(made: Made) -> None:
    """The probes themselves, on a kernel that runs the other tests."""
    assert probes.has_action(0x7FFF0000) and not probes.has_action(0x12340000)
    assert probes.has_flag(0x2) and not probes.has_flag(1 << 20)
    probes.read_filter()
    probes.apart(probes.NEW_NET, probes.inet_lock)
    probes.apart(probes.NEW_NET, probes.bridge_table)
    probes.openat2()
    probes.pidfd()


def test_a_probe_leaves_nothing_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="cross-device"):
        probes.apart(0, refuse(errno.EXDEV))
    probes.apart(probes.NEW_NET, probes.inet_lock)
    probes.read_filter()
    assert sorted(os.listdir("/proc/self/fd")) == before
    with netlink.Socket(netlink.NETFILTER) as host, pytest.raises(OSError, match="No such file"):
        host.dump(nft_ask.list_elements("agentshim", "inbound"))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_probe_that_dies_is_told() -> None:
    with pytest.raises(ChildProcessError):
        probes.apart(0, lambda: os._exit(9))


def test_seccomp(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.level for one in kernel.seccomp(made.host)} == {OK}
    monkeypatch.setattr(probes, "has_action", lambda number: number != 0x7FC00000)
    assert level(kernel.seccomp(made.host), "kernel.seccomp-actions") == WARN, "user_notif: nothing of ours needs it"
    monkeypatch.setattr(probes, "has_action", lambda number: number != 0x00050000)
    assert rows(kernel.seccomp(made.host), "kernel.seccomp-actions") == [(FAIL, "", "lacks errno")]
    monkeypatch.setattr(probes, "has_flag", lambda number: number != 0x1)
    assert level(kernel.seccomp(made.host), "kernel.seccomp-flags") == FAIL

    def unreadable() -> None:
        raise HostError("seccomp", "shim._sys", "no cffi", "the module", "install")

    monkeypatch.setattr(probes, "read_filter", unreadable)
    assert level(kernel.seccomp(made.host), "kernel.seccomp-read") == FAIL


def test_calls(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.level for one in kernel.calls(made.host)} == {OK}
    for name in ("openat2", "pidfd", "noexec_memfd", "audit_socket"):
        monkeypatch.setattr(probes, name, refuse(errno.ENOSYS))
    assert [row[0] for row in rows(kernel.calls(made.host))] == [OK, WARN, WARN, WARN]
    assert level(kernel.denials(made.host), "kernel.audit") == WARN


def test_namespaces(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write("/proc/self/ns/time", "")
    assert level(kernel.namespaces(made.host), "kernel.namespaces") == OK
    monkeypatch.setattr(probes, "apart", refuse(errno.ENOSPC))
    found = list(kernel.namespaces(made.host))
    assert (level(found, "kernel.namespaces"), level(found, "kernel.user-namespaces")) == (FAIL, WARN)
    (made.root / "proc/self/ns/time").unlink()
    assert level(kernel.namespaces(made.host), "kernel.time-namespaces") == WARN


def test_what_needs_root_is_no_failure_for_who_is_not(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("apart", "read_filter"):
        monkeypatch.setattr(probes, name, refuse(errno.EPERM))
    found = [*kernel.seccomp(made.host), *kernel.namespaces(made.host), *network.network(made.host)]
    for name in ("kernel.seccomp-read", "kernel.namespaces", "network.inet"):
        ((seen, _, words),) = rows(found, name)
        assert seen == WARN and words.startswith("could not be checked")


V1 = "30 20 0:26 / /sys/fs/cgroup/{0} rw shared:9 - cgroup cgroup rw,{0}\n"
V2 = "31 20 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    "mounts, controllers, expected",
    [
        ("", "", (FAIL, "no hierarchy is mounted")),
        (V2, "cpu memory pids", (OK, "v2: pids, memory, cpu")),
        (V2, "cpu memory", (WARN, "v2, without pids: limits of processes do not hold")),
        ("".join(map(V1.format, ("pids", "memory", "cpu", "devices"))), "", (OK, "v1: pids, memory, cpu, devices")),
        (
            "".join(map(V1.format, ("pids", "memory", "cpu"))),
            "",
            (WARN, "v1, without devices: limits of devices do not hold"),
        ),
        (V1.format("devices") + V2, "cpu memory pids", (OK, "v1 and v2: pids, memory, cpu, devices")),
    ],
)
def test_cgroups(made: Made, mounts: str, controllers: str, expected: tuple[str, str]) -> None:
    made.write("/proc/self/mountinfo", "29 1 0:5 / / rw - ext4 /dev/vda rw\n" + mounts)
    made.write("/sys/fs/cgroup/cgroup.controllers", controllers + "\n")
    ((seen, _, words),) = rows(kernel.cgroups(made.host), "kernel.cgroups")
    assert (seen, words) == expected


@pytest.mark.parametrize(
    "active, labels, expected",
    [
        ((), {}, WARN),
        (("apparmor",), {}, WARN),
        (("apparmor",), {"apparmor": "docker-default"}, OK),
        (("selinux",), {}, OK),
    ],
)
def test_modules(
    made: Made, monkeypatch: pytest.MonkeyPatch, active: tuple[str, ...], labels: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(facts, "_modules", lambda: (active, labels))
    assert "no securityfs" in rows(kernel.modules(made.host))[0][2]
    made.write("/sys/kernel/security/lsm", "lockdown")
    assert level(kernel.modules(made.host), "kernel.lsm") == expected


def test_denials_that_are_not_logged(made: Made) -> None:
    made.write("/proc/sys/kernel/seccomp/actions_logged", "kill_process kill_thread trap errno log\n")
    assert level(kernel.denials(made.host), "kernel.seccomp-logged") == OK
    made.write("/proc/sys/kernel/seccomp/actions_logged", "kill_process kill_thread\n")
    assert rows(kernel.denials(made.host), "kernel.seccomp-logged") == [(WARN, "", "not logged: trap, errno")]


def test_sysctls_and_authority(made: Made) -> None:
    assert level(kernel.sysctls(made.host), "kernel.port-start") == WARN
    made.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n")
    assert level(kernel.sysctls(made.host), "kernel.port-start") == OK
    made.write("/proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert level(kernel.authority(made.host), "kernel.root") == OK
    made.write("/proc/self/status", f"CapEff:\t{(1 << 41) - 1 - (1 << 24):016x}\n")
    assert rows(kernel.authority(made.host), "kernel.root") == [(WARN, "", "root without SYS_RESOURCE")]


# network


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without networks of our own, whatever this host has."""
    monkeypatch.setattr(network, "rules", lambda host: None)
    monkeypatch.setattr(network, "cut_off", lambda host: [])
    monkeypatch.setattr(net_others, "docker_user", dict)
    monkeypatch.setattr(net_others, "drops", list)


@pytest.mark.usefixtures("quiet")
def test_network_without_nf_tables_or_nft(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(network.network(made.host))
    assert (level(found, "network.inet"), level(found, "network.bridge"), level(found, "network.nft")) == (OK, OK, WARN)
    monkeypatch.setattr(probes, "apart", refuse(errno.EOPNOTSUPP))
    found = list(network.network(made.host))
    assert (level(found, "network.inet"), level(found, "network.bridge")) == (FAIL, WARN)


RULES = """table ip mangle {
	chain KUBE { type filter hook forward priority 0; meta mark set 0x4000 }
}
table inet agentshim {
	chain forward { meta mark set 0x800000 }
}
"""


def nft_says(made: Made, ruleset: str) -> None:
    made.program("/usr/sbin/nft", f"[ $1 = list ] || exec echo nftables v1.0.6; cat <<'END'\n{ruleset}\nEND")


@pytest.mark.usefixtures("quiet")
def test_marks_of_others(made: Made) -> None:
    nft_says(made, "table inet agentshim {\n\tchain forward { meta mark set 0x800000 }\n}")
    assert level(network.network(made.host), "network.marks") == OK, "ours"
    nft_says(made, RULES)
    assert rows(network.network(made.host), "network.marks") == [(WARN, "", "set in ip mangle")]


@pytest.mark.usefixtures("quiet")
def test_our_bridges_beside_others(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "rules", lambda host: True)
    lacking = {"/usr/sbin/iptables-nft": [("-i", "as-+", "-j", "ACCEPT")], "/usr/sbin/iptables-legacy": []}
    monkeypatch.setattr(net_others, "docker_user", lambda: lacking)
    monkeypatch.setattr(net_others, "drops", lambda: ["ip firewall forward"])
    assert rows(network.network(made.host), "network.docker-user") == [(OK, "", "no bridge of ours")]
    (made.root / "sys/class/net/as-agent").mkdir(parents=True)
    made.write(network.CALLS, "1\n")
    found = list(network.network(made.host))
    assert [row[:2] for row in rows(found, "network.docker-user")] == [(FAIL, "/usr/sbin/iptables-nft")]
    assert level(found, "network.br-netfilter") == WARN
    assert rows(found, "network.forward")[0][:2] == (WARN, "ip firewall forward")
    lacking.clear()
    made.write(network.CALLS, "0\n")
    found = list(network.network(made.host))
    assert (level(found, "network.docker-user"), level(found, "network.br-netfilter")) == (OK, OK)


@pytest.mark.parametrize(
    "kept, bridges, expected", [(None, 0, OK), (None, 1, FAIL), (True, 1, OK), (False, 1, FAIL), (False, 0, FAIL)]
)
@pytest.mark.usefixtures("quiet")
def test_our_rules(made: Made, monkeypatch: pytest.MonkeyPatch, kept: bool | None, bridges: int, expected: str) -> None:
    monkeypatch.setattr(network, "rules", lambda host: kept)
    for number in range(bridges):
        (made.root / f"sys/class/net/as-{number}").mkdir(parents=True)
    assert level(network.network(made.host), "network.tables") == expected


@pytest.mark.usefixtures("quiet")
def test_elements_of_running_containers(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert level(network.network(made.host), "network.elements") == OK
    monkeypatch.setattr(network, "cut_off", lambda host: ["c1", "c2"])
    ((seen, _, words),) = rows(network.network(made.host), "network.elements")
    assert seen == FAIL and "c1, c2" in words


def test_rules_that_were_loaded_and_are_not_there(made: Made) -> None:
    """A fingerprint that no kernel has: read from the very file that `net up` writes."""
    from hooks import host_state

    assert network.rules(made.host) is None
    made.write(f"{host_state.DIRECTORY}/{host_state.RULES}", "00ff\ndigest\n", 0o600)
    assert network.rules(made.host) is False


# what is printed


def checks(*found: Finding) -> tuple[tuple[str, Callable[[Host], Iterator[Finding]]], ...]:
    return (("room", lambda host: iter(found)),)


@pytest.mark.parametrize("levels, code", [((OK,), 0), ((OK, WARN), 0), ((WARN, FAIL, OK), 1), ((), 0)])
def test_exit_codes(
    levels: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding(one, "room.check", "x", "do" if one != OK else "") for one in levels]
    monkeypatch.setattr(doctor.examined, "__defaults__", (checks(*found),))
    assert doctor.main(["--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["result"] == (FAIL if FAIL in levels else WARN if WARN in levels else OK)
    assert told["format"] == 1 and sum(told["counts"].values()) == len(levels)
    assert all(set(row) == {"level", "name", "subject", "found", "todo"} for row in told["findings"])
    assert doctor.main([]) == code
    assert capsys.readouterr().out.count("-> do") == len([one for one in levels if one != OK])


def test_names_cannot_steer_the_terminal() -> None:
    shown = doctor.as_text([Finding(WARN, "around.unseen", "x\x1b[2J\n", "y\r", "/run/runc/\x07")])
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown.splitlines()) == 3


@pytest.mark.parametrize(
    "error", [OSError(13, "no", "/x"), HostError("a", "b", "c", "d", "e"), KeyError("x"), ValueError()]
)
def test_a_check_that_fails_is_a_warning(made: Made, error: Exception) -> None:
    def check(host: Host) -> Iterator[Finding]:
        yield Finding(OK, "room.first", "fine")
        raise error

    found = list(doctor.examined(made.host, [("room", check), *checks(Finding(OK, "room.next", "fine"))]))
    assert [one.name for one in found] == ["room.first", "room.unchecked", "room.next"]
    assert found[1].level == WARN and found[1].found.startswith("could not be checked")


def test_a_host_that_has_nothing(tmp_path: Path) -> None:
    """Never a traceback, whatever is missing: all checks, below an empty directory."""
    found = list(doctor.examined(Host(str(tmp_path), "/usr/local/bin/agentshim")))
    assert not [one for one in found if one.todo == "report this"]
    assert all(one.todo for one in found if one.level != OK)
    assert level(found, "delegate.found") == FAIL


def test_a_host_whose_files_are_something_else(made: Made) -> None:
    """Directories where files are meant, files where directories are, and text that is none."""
    for path in (
        "etc/docker/daemon.json",
        "etc/group",
        "proc/self/mountinfo",
        "proc/7/cmdline",
        "run/runc/x/state.json",
    ):
        (made.root / path).mkdir(parents=True)
    for path in ("/etc/containerd", "/run/crun", "/var/lib/dpkg/info", "/etc/containers/containers.conf.d"):
        made.write(path, b"\xff\xfe\0")
    for name in ("dockerd", "containerd", "podman", "crio", "nft", "runc"):
        made.program(f"/usr/bin/{name}", "exit 1")
    found = list(doctor.examined(made.host))
    assert not [one for one in found if one.todo == "report this"]


def test_each_check_has_a_name_of_its_room() -> None:
    assert {room for room, _ in doctor.CHECKS} == {
        "kernel",
        "delegate",
        "libseccomp",
        "engine",
        "around",
        "files",
        "network",
    }
