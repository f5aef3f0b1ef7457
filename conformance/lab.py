"""A policy that filters the network, for the tests that need one: its text, its name, an executable of that name."""

from __future__ import annotations

from conformance import columns
from conformance.columns import Column
from conformance.room import Room

LAB = Column("lab", "agentshim-lab")
GRANTED, OTHER, LEASED = 8080, 8081, 8082  # ports: one that the policy names, two that it does not
POLICY = """schema = 1
name = "lab"
about = "a container whose network is filtered"
base = "agent"

[network]
mode = "confine"
inbound = ["tcp:8080"]
[[network.add]]
to = "tcp:10.0.0.0/8:8080"
why = "the lab's own bridges"
doc = "https://example.com/lab"
"""


def furnish(room: Room, delegate: str = columns.RUNC) -> None:
    """Write the policy, and let annotations and the executable's name choose it."""
    policies = room.base / "config" / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "lab.toml").write_text(POLICY)
    link = room.base / "bin" / LAB.executable
    if not link.is_symlink():
        link.symlink_to(columns.launcher())
    config = columns.CONFIG.replace("annotations = [", 'annotations = ["lab", ').replace(
        "names = [", 'names = ["lab", '
    )
    columns.configure(room, config, delegate)
