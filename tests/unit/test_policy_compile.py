"""shim.cold.policy.compile and policy_source: the language of policies, its faults, and the built-in ones."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shim import policy, product
from shim.cold.policy import compile as cold
from shim.cold.policy.intents import INTENTS
from shim.cold.policy.policy_source import SECTIONS, examine
from shim.dim import capabilities, namespaces, rlimits
from shim.errors import HostError, Invalid, Refused
from tests.unit.policy_host import Host, make_host

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "policies"
SCHEMA = json.loads(Path(policy.PACKAGE, "schema", "policy.json").read_text())
NO_HOST = policy.Config({}, "/nonexistent/etc", "/nonexistent/var")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return make_host(tmp_path, monkeypatch)


def sections(host: Host, name: str = "mine") -> dict[str, Any]:
    found: dict[str, Any] = cold.resolve(name, host.config()).sections
    return found


# ---------------------------------------------------------------- faults, with file and line


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.toml")), ids=lambda path: path.stem)
def test_every_fault_is_said_with_its_line(path: Path) -> None:
    _, faults = examine(str(path), "policy", trusted=False)
    said = "".join(str(fault).replace(f"{GOLDEN}/", "") + "\n" for fault in faults)
    assert said == path.with_suffix(".expected").read_text()
    assert all("\n" not in str(fault) for fault in faults)


def test_a_fault_says_how_many_more_there_are(host: Host) -> None:
    host.policy("mine", "[mounts]\nvolumes = 1\nexec = 2\n")
    with pytest.raises(Invalid, match=r"mine.toml:5 mounts.volumes: asked 1.*and 1 more"):
        host.load("mine")


def test_a_huge_policy(host: Host) -> None:
    host.policy("mine", "#" * (1 << 20))
    with pytest.raises(Invalid, match="1 MiB"):
        host.load("mine")


def test_a_deep_policy(host: Host) -> None:
    host.policy("mine", "x = " + "[" * 50000 + "]" * 50000)
    with pytest.raises(Invalid):
        host.load("mine")


@pytest.mark.parametrize("make", [lambda p: os.mkfifo(p), lambda p: p.mkdir(), lambda p: p.symlink_to("/etc/passwd")])
def test_a_file_to_check_that_is_none(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "odd.toml"
    make(path)
    _, faults = examine(str(path), "policy")
    assert len(faults) == 1
    assert isinstance(faults[0], HostError)


def test_bases_in_a_circle(host: Host) -> None:
    host.policy("one", 'base = "two"\n')
    host.policy("two", 'base = "one"\n')
    host.policy("self", 'base = "self"\n')
    with pytest.raises(Invalid, match=r"two.toml:4 base: asked one -> two -> one"):
        host.load("one")
    with pytest.raises(Invalid, match="self -> self"):
        host.load("self")


def test_a_base_that_does_not_exist(host: Host) -> None:
    host.policy("mine", 'base = "nothing"\n')
    with pytest.raises(Refused, match="asked nothing"):
        host.load("mine")


# ---------------------------------------------------------------- dangerous joins


@pytest.mark.parametrize(
    "name",
    [
        "SYS_ADMIN",
        "NET_ADMIN",
        "SYS_PTRACE",
        "BPF",
        "PERFMON",
        "SYS_MODULE",
        "DAC_READ_SEARCH",
        "MKNOD",
        "SYS_RAWIO",
        "SYS_BOOT",
        "SYS_TIME",
        "NET_RAW",
        "CHECKPOINT_RESTORE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "AUDIT_CONTROL",
        "SYSLOG",
        "LINUX_IMMUTABLE",
        "IPC_OWNER",
    ],
)
def test_a_dangerous_capability_needs_why_and_doc(host: Host, name: str) -> None:
    for given in ("", ', why = "a reason"', ', doc = "https://e.org"'):
        host.policy("mine", f'[capabilities]\nadd = [{{ names = ["CHOWN", "{name}"]{given} }}]\n')
        with pytest.raises(Invalid):
            cold.resolve("mine", host.config())
    host.policy("mine", f'[capabilities]\nadd = [{{ names = ["{name}"], why = "a reason", doc = "https://e.org" }}]\n')
    assert sections(host)["capabilities"]["grant"] == [name]


def test_every_capability_is_known_and_each_is_dangerous_or_not_on_purpose() -> None:
    known = set(SCHEMA["$defs"]["capability"]["enum"])
    harmless = known - set(SCHEMA["$defs"]["dangerous_capability"]["enum"])
    assert known == set(capabilities.CAPABILITIES)
    assert harmless == {
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
        "NET_BROADCAST", "IPC_LOCK", "SYS_CHROOT", "LEASE", "AUDIT_WRITE", "SETFCAP", "WAKE_ALARM",
    }  # fmt: skip


def test_the_schemas_words_are_the_dimensions() -> None:
    kinds = set(SCHEMA["$defs"]["namespaces"]["properties"]["host"]["items"]["enum"])
    assert kinds == set(namespaces.KINDS)
    assert set(SCHEMA["$defs"]["rlimits"]["propertyNames"]["enum"]) == {one[7:].lower() for one in rlimits.TYPES}
    assert {dim.NAME for dim in product.DIMENSIONS} | {"network"} == set(SECTIONS)
    assert set(SECTIONS) <= set(SCHEMA["properties"])
    assert set(SCHEMA["$defs"]["intent"]["properties"]["name"]["enum"]) == set(INTENTS)


def test_every_section_may_be_top_with_a_reason_and_not_without(host: Host) -> None:
    for section in SECTIONS:
        host.policy("mine", f'{section} = "top"\n')
        with pytest.raises(Invalid, match=f"{section}: asked top without why"):
            cold.resolve("mine", host.config())
        host.policy("mine", f'why = "a reason"\ndoc = "https://e.org"\n{section} = "top"\n')
        assert sections(host) == {section: "top"}


# ---------------------------------------------------------------- what joins mean


def test_a_policy_starts_from_bottom(host: Host) -> None:
    host.policy("mine")
    form = cold.compile("mine", host.config())
    network = form["sections"].pop("network")  # nothing passes, and that takes a lock, whose plan is in it
    assert set(form["sections"].values()) == {None}
    assert network["plan"] and not network["outbound"] and not network["inbound"]
    form["sections"]["network"] = network
    assert product.from_policy(form["sections"]) == product.BOTTOM


def test_lists_that_allow_add_and_all_else_replaces(host: Host) -> None:
    host.policy(
        "below", '[sysctl]\nallow = ["net.b"]\n[resources]\npids = 5\nmemory = "1g"\n[paths]\nmasked = ["/a"]\n'
    )
    host.policy(
        "mine",
        'base = "below"\n[sysctl]\nallow = ["net.a"]\n[resources]\npids = 7\n[paths]\nmasked = ["/b"]\n'
        '[paths.scratch]\n"/tmp" = { size = "1k" }\n',
    )
    assert sections(host) == {
        "sysctl": {"allow": ["net.a", "net.b"]},
        "resources": {"pids": 7, "memory": 1 << 30},
        "paths": {"masked": ["/b"], "scratch": {"/tmp": {"size": 1024, "exec": False}}},
    }


def test_a_table_after_top_starts_from_bottom_again(host: Host) -> None:
    host.policy("mine", 'base = "identity"\n[resources]\npids = 7\n[capabilities]\n')
    found = sections(host)
    assert (found["resources"], found["capabilities"], found["mounts"]) == ({"pids": 7}, {}, "top")


def test_joins_and_their_reasons(host: Host) -> None:
    host.policy(
        "mine",
        '[capabilities]\nadd = [{ names = ["KILL", "CHOWN"], why = "owns files" }]\n'
        '[mounts]\nsockets = [{ path = "/run/app.sock", why = "asks its peer" }]\n'
        '[devices]\nadd = [{ path = "/dev/fuse", type = "c", major = 10, minor = 229, access = "rw", why = "sshfs" }]\n'
        '[hooks]\nadd = [{ path = "/opt/hook", why = "its network", doc = "https://e.org" }]\n',
    )
    resolved = cold.resolve("mine", host.config())
    assert resolved.sections == {
        "capabilities": {"grant": ["CHOWN", "KILL"]},
        "mounts": {"sockets": ["/run/app.sock"]},
        "devices": {"add": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "access": "rw"}]},
        "hooks": {"allow": ["/opt/hook"]},
    }
    assert {name: (one["why"], one["at"]) for name, one in resolved.why.items()} == {
        "capabilities.KILL": ("owns files", "mine.toml:5"),
        "capabilities.CHOWN": ("owns files", "mine.toml:5"),
        "mounts./run/app.sock": ("asks its peer", "mine.toml:7"),
        "devices./dev/fuse": ("sshfs", "mine.toml:9"),
        "hooks./opt/hook": ("its network", "mine.toml:11"),
    }


def test_every_intent_expands(host: Host) -> None:
    given = {
        "workspace": 'path = "/work"',
        "outbound": 'to = ["tcp:203.0.113.5:443"]',
        "user-namespaces": 'doc = "https://e.org"',
    }
    found = {}
    for name in INTENTS:
        host.policy("mine", f'[[intents]]\nname = "{name}"\nwhy = "a test"\n{given.get(name, "")}\n')
        resolved = cold.resolve("mine", host.config())
        assert resolved.why[f"intents.{name}"]["why"] == "a test"
        found[name] = resolved.sections
    assert found["bind-low-port"]["capabilities"] == {"grant": ["NET_BIND_SERVICE"], "ambient": ["NET_BIND_SERVICE"]}
    assert found["workspace"]["mounts"]["workspace"] == ["/work"]
    assert found["outbound"]["network"]["outbound"] == ["tcp:203.0.113.5:443"]
    assert found["packages"]["paths"]["rootfs"] == "writable"
    assert found["user-namespaces"] == {"seccomp": {"add": ["@user-namespaces"]}}


def test_an_intent_does_not_shrink_what_a_file_gives(host: Host) -> None:
    host.policy(
        "mine",
        'intents = [{ name = "web-service", why = "a test" }]\n'
        '[paths.scratch]\n"/run" = { size = "1g", exec = true }\n',
    )
    assert sections(host)["paths"]["scratch"]["/run"] == {"size": 1 << 30, "exec": True}


def test_an_expired_join_is_left_out_and_said(host: Host) -> None:
    host.policy(
        "mine",
        "intents = [\n"
        '  { name = "packages", why = "last year", expires = 2020-01-01 },\n'
        '  { name = "bind-low-port", why = "this century", expires = 2090-06-01T12:00:00+02:00 },\n'
        "]\n[capabilities]\n"
        'add = [{ names = ["SETFCAP"], why = "last year", expires = 2020-01-01 }]\n',
    )
    resolved = cold.resolve("mine", host.config())
    assert resolved.sections["capabilities"]["grant"] == ["NET_BIND_SERVICE"]
    assert "paths" not in resolved.sections
    assert set(resolved.expired) == {"intents.packages", "capabilities.SETFCAP"}
    assert resolved.expires == int(datetime(2090, 6, 1, 10, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("base", [None, "locked", "identity"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_top_until_its_files_end(host: Host, section: str, base: str | None) -> None:
    """From then on the line counts as absent: what the base says of the section holds, or nothing."""
    head = f'base = "{base}"\n' if base else ""
    said = f'{head}why = "a while"\ndoc = "https://e.org"\n{section} = "top"\n'
    host.policy("mine", f"{said}expires = 2100-01-01\n")
    before = cold.resolve("mine", host.config())
    assert (before.sections[section], before.expires) == ("top", 4102444800)
    assert before.why[section]["why"] == "a while"
    after = cold.resolve("mine", host.config(), now=4102444800.0)
    host.policy("absent", head)
    assert after.sections == sections(host, "absent")
    assert after.expired == {section: {"policy": "mine", "at": after.expired[section]["at"], **AWHILE}}
    assert after.why.get(section, {}).get("why") != "a while"
    assert after.expires is None


AWHILE = {"why": "a while", "doc": "https://e.org", "expires": "2100-01-01"}


def test_tops_and_dated_lines_beside_them_end_each_at_its_time(host: Host) -> None:
    host.policy(
        "mine",
        'why = "a while"\ndoc = "https://e.org"\nexpires = 2100-01-01\nresources = "top"\n'
        'intents = [{ name = "packages", why = "set up", expires = 2090-01-01 }]\n'
        '[capabilities]\nadd = [{ names = ["SETFCAP"], why = "set up", expires = 2080-01-01 }]\n',
    )
    told = {}
    for year in (2079, 2081, 2091, 2101):
        now = datetime(year, 1, 1, tzinfo=UTC).timestamp()
        resolved = cold.resolve("mine", host.config(), now=now)
        told[year] = (set(resolved.sections), resolved.sections["capabilities"].get("grant", []), resolved.expires)
    assert "SETFCAP" in told[2079][1] and "SETFCAP" not in told[2081][1] and "CHOWN" in told[2081][1]
    assert told[2079][0] == told[2081][0] == {"resources", "capabilities", "paths"}
    assert told[2091][0] == {"resources", "capabilities"} and told[2091][1] == []
    assert told[2101][0] == {"capabilities"}
    ends = [int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2080, 2090, 2100)]
    assert [one[2] for one in told.values()] == [*ends, None]


def test_an_end_of_a_whole_file_that_ends_nothing_is_a_fault(host: Host) -> None:
    host.policy("mine", 'base = "agent"\nexpires = 2100-01-01\n[resources]\npids = 7\n')
    with pytest.raises(Invalid, match=r'mine.toml:5 expires: asked 2100-01-01, ceiling a section that is "top"'):
        cold.resolve("mine", host.config())


def test_the_digest_is_of_what_is_held_not_of_how_it_is_written(host: Host) -> None:
    host.policy("mine", '[resources]\npids = 7\n[paths.scratch]\n"/tmp" = { size = "64m" }\n')
    host.policy("same", '# words\n[paths.scratch]\n"/tmp" = { exec = false, size = 67108864 }\n[resources]\npids = 7\n')
    host.policy("other", '[resources]\npids = 8\n[paths.scratch]\n"/tmp" = { size = "64m" }\n')
    digests = [cold.form_of(cold.resolve(name, host.config()))["digest"] for name in ("mine", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_above_the_limit_names_the_dimension(host: Host) -> None:
    host.policy("mine", 'base = "agent"\n[resources]\npids = 5000\n')
    with pytest.raises(Refused, match="mine: resources: asked pids = 5000, ceiling pids = 4096"):
        host.load("mine")
    host.policy("bare", 'base = "agent"\n[paths]\nmasked = ["/proc/kcore"]\n')
    with pytest.raises(Refused, match=r'bare: paths: asked masked = \["/proc/kcore"\], ceiling masked = '):
        host.load("bare")
    why = 'why = "fuse", doc = "https://e.org"'
    host.policy(
        "fuse",
        f'base = "dev"\n[capabilities]\nadd = [{{ names = ["SYS_ADMIN"], {why} }}]\n'
        f'[devices]\nadd = [{{ path = "/dev/fuse", type = "c", major = 10, minor = 229, access = "rw", {why} }}]\n',
    )
    with pytest.raises(Refused, match=r'fuse: capabilities: asked grant = \["SYS_ADMIN"\], ceiling'):
        host.load("fuse")


def test_above_the_limit_names_the_system_calls(host: Host) -> None:
    host.policy("mine", 'base = "agent"\nintents = [{ name = "debug", why = "finds a crash" }]\n')
    with pytest.raises(Refused, match=r"mine: seccomp: asked .*ptrace.*, ceiling the limit's profile"):
        host.load("mine")
    host.policy("wide", 'base = "dev"\nintents = [{ name = "debug", why = "finds a crash" }]\n')
    host.configure('limit = "wide"\n')
    assert host.load("mine").limit["name"] == "wide"


def test_a_profile_of_the_host_is_a_source(host: Host) -> None:
    profile = host.etc / "policies" / "own.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}')
    profile.chmod(0o644)
    host.policy("mine", 'base = "locked"\n[seccomp]\nfile = "own.json"\n')
    first = host.load("mine")
    assert sections(host)["seccomp"] == {"file": "own.json"}
    profile.write_text('{"defaultAction": "SCMP_ACT_KILL", "syscalls": []}')
    assert host.load("mine").digest != first.digest
    profile.chmod(0o666)
    with pytest.raises(HostError, match=r"own\.json: asked mode 0666"):
        host.load("mine")


def test_a_young_file_is_left_to_settle(host: Host) -> None:
    """A write in the tick of the clock after our read would leave the same times: the record must not be that young."""
    path = host.policy("mine", 'base = "locked"\n')
    path.write_text(path.read_text())
    source, _ = examine(str(path), "policy")
    assert source is not None
    assert time.time() - source.stat[1] / 1e9 >= 0.02


# ---------------------------------------------------------------- the built-in policies


@pytest.fixture(scope="module")
def built_in() -> dict[str, dict[str, Any]]:
    return {name: cold.compile_builtin(name) for name in policy.BUILTIN}


@pytest.mark.parametrize("name", policy.BUILTIN)
def test_the_compiled_forms_are_fresh(built_in: dict[str, dict[str, Any]], name: str) -> None:
    """Run `agentshim policy compile --builtin` (make build) if this fails."""
    stored = json.loads(Path(policy.COMPILED, f"{name}.json").read_text())
    assert stored == built_in[name]


@pytest.mark.parametrize("name", ["locked", "agent", "web", "dev"])
def test_dev_is_above_every_other_in_every_dimension(built_in: dict[str, dict[str, Any]], name: str) -> None:
    below = product.from_policy(built_in[name]["sections"])
    above = product.from_policy(built_in["dev"]["sections"])
    assert product.above(below, above) == []


def test_locked_is_below_agent_and_identity_is_top(built_in: dict[str, dict[str, Any]]) -> None:
    values = {name: product.from_policy(form["sections"]) for name, form in built_in.items()}
    assert product.above(values["locked"], values["agent"]) == []
    assert values["identity"] == product.TOP
    assert product.above(values["dev"], values["agent"])


def test_agent_grants_no_capability_and_web_gives_a_low_port_to_other_users(
    built_in: dict[str, dict[str, Any]],
) -> None:
    agent = product.from_policy(built_in["agent"]["sections"])["capabilities"]
    web = product.from_policy(built_in["web"]["sections"])["capabilities"]
    assert agent == capabilities.BOTTOM
    assert web.sets[capabilities.SETS.index("ambient")] == capabilities.BIT["NET_BIND_SERVICE"]
    assert not web.gain


DOCKER_MASKED = {
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}  # fmt: skip
DOCKER_READONLY = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}


@pytest.mark.parametrize("name", ["locked", "agent", "web", "dev"])
def test_no_policy_masks_less_than_docker(built_in: dict[str, dict[str, Any]], name: str) -> None:
    paths = built_in[name]["sections"]["paths"]
    assert set(paths["masked"]) >= DOCKER_MASKED
    assert set(paths["readonly"]) >= DOCKER_READONLY


@pytest.mark.parametrize("name", policy.BUILTIN)
def test_every_grant_of_a_built_in_policy_says_why(name: str) -> None:
    resolved = cold.resolve(name, NO_HOST)
    capabilities_given = resolved.sections["capabilities"]
    granted = [] if capabilities_given == "top" else capabilities_given.get("grant", [])
    assert all(resolved.why[f"capabilities.{one}"]["why"] for one in granted)
    assert all(resolved.why[one]["doc"] for one, value in resolved.sections.items() if value == "top")
