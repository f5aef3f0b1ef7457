"""[network] names = "learn": what the compiler makes of it, the rules and the resolver's file, each as text."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hooks import host_rules, host_state
from shim import kernel, state
from shim.cold.network import network_source, resolver
from shim.dim import network
from shim.errors import HostError, Invalid
from shim.verbs import link

TAG = "0a" * 6
SECTION = {
    "mode": "isolated",
    "names": "learn",
    "outbound": ["tcp:API.example.com:443", "tcp:b.example.com:443", "udp:b.example.com:5000-5010", "tcp:1.1.1.1:80"],
}


def compiled(**more: Any) -> Any:
    return network_source.expand({**SECTION, **more}, set())


def test_what_a_policy_becomes() -> None:
    section = compiled(host_services=["tcp:5432", "udp:53"])
    assert section["learned"] == [
        ["tcp", "api.example.com", 443, 443],
        ["tcp", "b.example.com", 443, 443],
        ["udp", "b.example.com", 5000, 5010],
    ]
    assert "names" not in section and "plan" not in section
    assert section["services"] == [["tcp", 53, 53], ["tcp", 5432, 5432], ["udp", 53, 53]]
    assert section["outbound"] == [["tcp", "1.1.1.1/32", 80, 80]]
    assert all(":" not in one for one in section["public"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mode": "confine"}, "mode confine"),
        ({"mode": "auto"}, "mode auto"),
        ({"mode": "dead-end"}, "dead-end"),
        ({"mode": "engine"}, "engine"),
        ({"dns": "engine"}, "another resolver"),
        ({"outbound": ["tcp:1.1.1.1:80"]}, "without a name"),
        ({"outbound": ["tcp:db:5432"]}, "with a dot"),
        ({"outbound": [f"tcp:a.example.com:{port}" for port in range(1, 10)]}, "9 kinds"),
        (
            {"macvlan": {"parent": "e", "addresses": "192.0.2.64/26", "gateway": "192.0.2.1", "prefix": 24}},
            "names = learn",
        ),
    ],
)
def test_where_names_are_not_learned(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        compiled(**more)


def test_eight_kinds_are_not_too_many() -> None:
    assert len(compiled(outbound=[f"tcp:a.example.com:{port}" for port in range(1, 9)])["learned"]) == 8


def test_learned_names_count_as_every_public_address() -> None:
    """Also for whoever joins: a record's section has what they are measured by."""
    value = network.from_policy(compiled())
    pinned = network.from_policy(network_source.expand({**SECTION, "names": "pin"}, set()))
    assert value.outbound[: len(network.PROTOCOLS)] == pinned.outbound[: len(network.PROTOCOLS)]
    assert not any(value.outbound[len(network.PROTOCOLS) :]), "IPv6 is shut"
    literal = network.from_policy({"mode": "isolated", "outbound": [["tcp", "1.1.1.1/32", 80, 80]]})
    assert not network.leq(value, literal)


def test_the_lock_inside_lets_through_what_no_record_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    own = network.block("8.8.8.0/24")
    monkeypatch.setattr(kernel, "addresses", lambda six=True: [own])
    section = compiled()
    inside = network.from_policy({**link._inside(section), "learned": []})
    wide = network.from_policy(section)
    assert network.leq(inside, wide) and not network.leq(wide, inside)
    assert not any(low <= own[2] and own[1] <= high for low, high, _ in inside.outbound[0]), "the host's own addresses"
    assert any(low <= own[1] and own[2] <= high for low, high, _ in wide.outbound[0])
    assert section["outbound"] == [["tcp", "1.1.1.1/32", 80, 80]], "as it was"


def rules(section: dict[str, Any]) -> str:
    return host_rules.policy(TAG, section)


def chain(text: str, name: str) -> list[str]:
    head = f"add rule inet agentshim {name} "
    return [line.removeprefix(head) for line in text.splitlines() if line.startswith(head)]


def test_rules_of_learned_names() -> None:
    text = rules(compiled())
    for number in (0, 1):
        name = f"learned_{TAG}_{number}"
        assert f"add set inet agentshim {name} {host_rules.LEARNED}\n" in text
        assert f"flush set inet agentshim {name}" not in text, "what was learned outlives a reload"
    out = chain(text, f"out_{TAG}")
    assert out[0] == f"meta l4proto . ip daddr . th dport @hosts_{TAG} accept", "literal grants first"
    assert out[1] == f"ip daddr {{ {', '.join(host_rules.hard())} }} goto deny_out"
    assert out[2].startswith("ip daddr != { ") and out[2].endswith(" } return")
    assert out[3] == (
        f"ip daddr @learned_{TAG}_0 meta l4proto tcp th dport 443-443"
        f" update @learned_{TAG}_0 {{ ip daddr timeout 1h }} accept"
    )
    assert f"@learned_{TAG}_1 meta l4proto udp th dport 5000-5010 " in out[4]
    assert out[5:] == ["return"]
    back = chain(text, f"in_{TAG}")
    assert back[2] == f"ip saddr @learned_{TAG}_0 meta l4proto tcp th sport 443-443 accept"
    assert back[-1] == "return" and "update" not in "".join(back)
    assert "learned" not in rules(network_source.expand({"mode": "isolated", "outbound": ["tcp:1.1.1.1:80"]}, set()))


nft = pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/usr/bin"), reason="NO nft HERE: RULES ARE NOT PARSED")


@nft
@pytest.mark.parametrize("left", [["tcp:a.example.com:443"], ["tcp:1.1.1.1:443"]])
def test_the_kernel_takes_them_and_their_end(left: list[str]) -> None:
    """Loaded twice, with a set that is filled between, and ended; in a network namespace of its own."""
    section = compiled(outbound=left) if "1.1" not in left[0] else {"mode": "isolated", "outbound": []}
    text = host_rules.tables() + rules(section)
    fill = f"add element inet agentshim learned_{TAG}_0 {{ 8.8.8.8 }}\n" if "learned" in section else ""
    script = f"set -e\nnft -c -f - <<'E'\n{text}E\nnft -f - <<'E'\n{text}E\nnft -f - <<'E'\n{fill}{text}E\n"
    script += f"nft list ruleset\nnft -f - <<'E'\n{host_rules.no_policy(TAG)}E\necho ENDED\nnft list ruleset\n"
    done = subprocess.run(["unshare", "-Urn", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("ENDED")
    assert ("8.8.8.8 expires" in before) == ("learned" in section), "kept over a reload"
    assert TAG not in after and "chain from_agent" in after


def test_the_resolvers_file() -> None:
    listed = {TAG: compiled()["learned"], "1b" * 6: [["tcp", "api.example.com", 80, 80]]}
    text = resolver.configuration("as-x", "10.207.0.1", listed, ["127.0.0.53", "fe80::1", "2001:db8::1"], "/run/pid")
    lines = text.splitlines()
    assert "address=/#/" in lines and "no-resolv" in lines and "no-hosts" in lines and "stop-dns-rebind" in lines
    assert [one for one in lines if one.startswith("server=/api.")] == [
        "server=/api.example.com/127.0.0.53",
        "server=/api.example.com/2001:db8::1",
    ]
    assert "address=/*.api.example.com/" in lines, "no subdomain is asked for"
    sets = f"4#inet#agentshim#learned_{TAG}_0,4#inet#agentshim#learned_{'1b' * 6}_0"
    assert f"nftset=/api.example.com/{sets}" in lines
    assert f"nftset=/b.example.com/4#inet#agentshim#learned_{TAG}_0,4#inet#agentshim#learned_{TAG}_1" in lines
    assert not [one for one in lines if one.startswith("server=") and not one.startswith("server=/")]
    with pytest.raises(HostError, match="no name server"):
        resolver.configuration("as-x", "10.207.0.1", listed, ["fe80::1", "10.207.0.1"], "/run/pid")


def test_a_dead_resolver_is_seen(tmp_path: Path) -> None:
    place = tmp_path / "web"
    place.mkdir()
    assert host_state.resolver(str(tmp_path), "web") == (0, "")
    with subprocess.Popen(["sleep", "60"]) as child:
        begun = host_state.started(str(child.pid))
        for start, found in ((begun, child.pid), (begun + 1, 0)):
            (place / "resolver").write_text(f"{child.pid} {start} digest")
            assert host_state.resolver(str(tmp_path), "web") == (found, "digest")
        (place / "resolver").write_text(f"{child.pid} {begun} digest")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert host_state.resolver(str(tmp_path), "web") == (0, "digest"), "also before somebody has buried it"


def test_only_our_files_are_lent() -> None:
    for suffix, place in ((".hosts", "/etc/hosts"), (".resolv", "/etc/resolv.conf")):
        source = f"{state.DIRECTORY}/0123{suffix}"
        mount = kernel.hosts_mount(source)
        facts = kernel.Facts()
        assert mount["destination"] == place and facts.is_hosts(mount)
        assert not facts.is_hosts({**mount, "options": ["bind"]})
        assert not facts.is_hosts({**mount, "destination": "/etc/passwd"})
        assert not facts.is_hosts({**mount, "source": f"/tmp/0123{suffix}"})
    assert not kernel.Facts().is_hosts({**mount, "source": f"{state.DIRECTORY}/0123.json"})
