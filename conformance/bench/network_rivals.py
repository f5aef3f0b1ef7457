"""How others build a container's network: netavark, CNI plugins, and a script of ip(8) and nft(8).

Belongs here: each way's files and calls. Next door: `network` orders and times them, `network_lab` has our way. Each
has a host's namespace of its own, in which one container stays, so that nobody makes or removes a bridge within what is
timed; and each is given the address, as podman gives it, but for CNI, whose host-local finds one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from conformance.bench.network_lab import PUBLISHED, Call, Guest, Net, Ours, guest, tool
from hooks import labels
from hooks.grants import address_of

Work = Callable[[], None]
CNI = Path("/usr/lib/cni")
NETAVARK = ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark", "/usr/bin/netavark")
# What each way needs -> the package that Debian has it in
NEEDS = {
    "netavark": (NETAVARK, "netavark"),
    "cni": ((str(CNI / "bridge"), "/opt/cni/bin/bridge"), "containernetworking-plugins"),
    "script": (("/usr/sbin/nft", "/sbin/nft"), "nftables"),
    "iptables": (("/usr/sbin/iptables", "/sbin/iptables"), "iptables"),
    "dockerd": (("/usr/sbin/dockerd", "/usr/bin/dockerd"), "docker.io"),
}
ADDRESS, PROTOCOL = PUBLISHED[0], PUBLISHED[3]
OUTSIDE, INSIDE = PUBLISHED[1:3]
SUBNET, GATEWAY = "10.88.0.0/16", "10.88.0.1"


class Way(Protocol):
    """`join` prepares all that is not to be timed for one container: what builds its network, and what ends it."""

    net: Net

    def join(self, member: Guest, published: bool = False) -> tuple[Work, Work]: ...


def found(name: str) -> str | None:
    """Where the program of a way is."""
    return next((path for path in NEEDS[name][0] if os.access(path, os.X_OK)), None)


class Netavark:
    """netavark, as podman calls it: JSON on stdin."""

    def __init__(self, folder: Path) -> None:
        self.net, self.folder, self.count = Net(), folder, 1
        self.program = found("netavark") or ""
        folder.mkdir(mode=0o700)

    def join(self, member: Guest, published: bool = False) -> tuple[Work, Work]:
        self.count += 1
        name = f"{self.count:064x}"
        asks: dict[str, Any] = {
            "container_id": name,
            "container_name": f"bench{self.count}",
            "networks": {"podman": {"static_ips": [_address(self.count)], "interface_name": "eth0"}},
            "network_info": {"podman": _NETWORK},
        }
        if published:
            asks["port_mappings"] = [
                {"host_ip": ADDRESS, "host_port": OUTSIDE, "container_port": INSIDE, "protocol": PROTOCOL, "range": 1}
            ]
        stdin = self.folder / f"{self.count}.json"
        stdin.write_text(json.dumps(asks))
        words = [self.program, "--config", str(self.folder)]
        said = self.folder / "said"
        up, down = (Call([*words, verb, member.path], stdin, said, {}) for verb in ("setup", "teardown"))
        return up, down


_NETWORK = {
    "name": "podman",
    "id": "be" * 32,
    "driver": "bridge",
    "network_interface": "podman0",
    "subnets": [{"subnet": SUBNET, "gateway": GATEWAY}],
    "ipv6_enabled": False,
    "internal": False,
    "dns_enabled": False,
    "ipam_options": {"driver": "host-local"},
}


class Plugins:
    """CNI's bridge, firewall and portmap, called as libcni does: each gets what the one before said; DEL backwards."""

    def __init__(self, folder: Path) -> None:
        self.net, self.folder, self.count = Net(), folder, 0
        folder.mkdir(mode=0o700)
        self.place = Path(found("cni") or "").parent
        ipam = {"type": "host-local", "dataDir": str(folder / "ipam"), "ranges": [[{"subnet": SUBNET}]],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": ipam}
        self.first = [{"cniVersion": "0.4.0", "name": "bench", **one} for one in (bridge, {"type": "firewall"})]
        self.portmap = {"cniVersion": "0.4.0", "name": "bench", "type": "portmap", "snat": True}

    def join(self, member: Guest, published: bool = False) -> tuple[Work, Work]:
        self.count += 1
        said, file, errors = (self.folder / f"{self.count}.{one}" for one in ("said", "json", "errors"))
        more = {"CNI_CONTAINERID": f"bench{self.count}", "CNI_NETNS": member.path, "CNI_IFNAME": "eth0",
                "CNI_PATH": str(self.place)}  # fmt: skip

        def one(verb: str, config: dict[str, Any], before: bytes) -> bytes:
            told = json.dumps(config).encode()
            file.write_bytes(told[:-1] + b', "prevResult": ' + before + b"}" if before else told)
            argv = [str(self.place / config["type"])]
            Call(argv, file, errors, {**more, "CNI_COMMAND": verb}, said)()
            return said.read_bytes()

        results: list[bytes] = []
        mapping = {"hostIP": ADDRESS, "hostPort": OUTSIDE, "containerPort": INSIDE, "protocol": PROTOCOL}
        # libcni leaves out nothing: without a port to publish portmap is called as well, and does nothing
        chain = [*self.first, {**self.portmap, "runtimeConfig": {"portMappings": [mapping] if published else []}}]

        def add() -> None:
            before = b""
            for config in chain:
                before = one("ADD", config, before)
            results.append(before)

        def end() -> None:
            for config in reversed(chain):
                one("DEL", config, results[-1])

        return add, end


class Script:
    """The same network as ours by ip(8) and nft(8): four processes and a shell. Down to the last rule, but for two that
    nft lists and does not read: of what an ICMP error is about.
    """

    def __init__(self, hook: Path, folder: Path, grants: dict[str, Any]) -> None:
        self.ours = Ours(hook, folder, grants)
        self.net, self.folder = self.ours.net, folder
        self.locks = [self._lock(published) for published in (False, True)]

    def _lock(self, published: bool) -> str:
        """The lock inside as text."""
        with guest() as model, self.net.inside():
            up, down = self.ours.join(model, published)
            up()
            with model.inside():
                lines = tool("nft", "list", "ruleset").splitlines()
            down()
            return "\n".join(line for line in lines if " . @th," not in line) + "\n"

    def join(self, member: Guest, published: bool = False) -> tuple[Work, Work]:
        bridge, packed = self.ours.bridge, self.ours.address()
        gateway, publish = address_of(bridge["gateway"]), self.ours.section["publish"] if published else []
        address, end = ".".join(map(str, packed)), labels.host_end(packed)
        mac, hardware = labels.mac(packed).hex(":"), labels.mac(gateway).hex(":")
        files = {
            "host.ip": f"""link add {end} type veth peer name eth0 address {mac} netns {member.pid}
link set {end} master {bridge["bridge"]}
link set {end} addrgenmode none type bridge_slave isolated on learning off flood off mcast_flood off bcast_flood off
neigh replace {address} lladdr {mac} nud permanent dev {bridge["bridge"]}
link set {end} up
""",
            "host.nft": _elements("add", end, mac, address, bridge["tag"], publish),
            "guest.ip": f"""link set lo up
link set eth0 addrgenmode none
address add {address}/{bridge["prefix"]} dev eth0 noprefixroute
link set eth0 up
neigh add {bridge["gateway"]} lladdr {hardware} nud permanent dev eth0
route add {bridge["gateway"]} dev eth0 scope link
route add default via {bridge["gateway"]}
""",
            "guest.nft": self.locks[published],
            "end.nft": _elements("delete", end, mac, address, bridge["tag"], publish),
        }
        name = str(self.folder / f"s{self.ours.count}")
        for kind, text in files.items():
            Path(f"{name}.{kind}").write_text(text)
        add = f"""set -e
nft -f {name}.host.nft
ip -batch {name}.host.ip
bridge fdb add {mac} dev {end} master static
exec nsenter --net={member.path} sh -ec 'nft -f {name}.guest.nft; ip -batch {name}.guest.ip'
"""
        less = f"set -e\nnft -f {name}.end.nft\nexec ip neigh del {address} dev {bridge['bridge']}\n"
        return self._shell(f"{name}.add", add), self._shell(f"{name}.end", less)

    def _shell(self, name: str, text: str) -> Work:
        Path(name).write_text(text)
        return Call(["/bin/sh", name], Path("/dev/null"), self.folder / "said", {})


def _elements(word: str, end: str, mac: str, address: str, tag: str, published: list[list[Any]]) -> str:
    """What hooks.host.enter adds, as text."""
    line = f"{word} element inet agentshim"
    out, into = (f" : jump {side}_{tag}" if word == "add" else "" for side in ("out", "in"))
    text = f'{word} element bridge agentshim ports {{ "{end}" . {mac} . {address} }}\n'
    text += f"{line} agents {{ {address} }}\n"
    text += f"{line} policies_out {{ {address}{out} }}\n{line} policies_in {{ {address}{into} }}\n"
    for outer, outside, inside, protocol in published:
        target = f" : {address} . {inside}" if word == "add" else ""
        text += f"{line} published {{ {outer} . {protocol} . {outside}{target} }}\n"
        text += f"{line} served {{ {address} . {protocol} . {inside} }}\n"
    return text


def _address(number: int) -> str:
    return f"10.88.{number >> 8}.{number & 255}"
