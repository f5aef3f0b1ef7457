"""The first start of a pair of profiles compares the filter that the delegate loads; later ones do not.

runc's init has it in the kernel by then; crun keeps what it will load in a file of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import pytest

from conformance.columns import CONFIG, CRUN, REPOSITORY, configure, python
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.room import wait_for
from shim.cold.seccomp import loaded_filter

pytestmark = pytest.mark.oci
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["ptrace", "kcmp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
}


READ = """
import os, sys
sys.path.insert(0, sys.argv[1])
from shim.seccomp import cache
from shim.verbs import gate
for name in os.listdir(gate.PROVED):
    if name.endswith(gate.SEEN) and gate.is_seen(name.removesuffix(gate.SEEN)):
        print(name, cache.load(gate.PROVED, name).proof["probes"])
"""


def seen(runtime: Runtime) -> dict[str, int]:
    """The probes of each pair that was compared, as recorded in the room."""
    told = runtime.room.run([python(), "-I", "-S", "-B", "-c", READ, str(REPOSITORY)]).out.splitlines()
    return {name: int(probes) for name, probes in map(str.split, told)}


def waiting(runtime: Runtime) -> set[str]:
    """The pairs whose first start the launcher sends to Python; other tests create what they never start."""
    return set(runtime.room.run(["ls", "/run/agentshim/unseen"]).out.split())


def test_first_start(runtime: Runtime, bundle: Maker) -> None:
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    before, others = seen(runtime), waiting(runtime)
    asked = spec("true")
    asked["linux"]["seccomp"] = PROFILE
    made = bundle(asked)
    runtime.must("create", "--bundle", str(made.path), "c")
    assert waiting(runtime) - others
    runtime.must("start", "c")
    new = {key: probes for key, probes in seen(runtime).items() if key not in before}
    assert len(new) == 1
    assert min(new.values()) > 1000
    assert not waiting(runtime) - others
    wait_for(lambda: runtime.status("c") == "stopped", 10, "stopped")
    runtime.must("delete", "c")
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    assert not waiting(runtime) - others


def test_the_first_run_compares_too(runtime: Runtime, bundle: Maker, delegate: str) -> None:
    """With runc, in a hook while the init waits; the second run has none. crun loads when nobody can look."""
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    if delegate == CRUN:
        pytest.skip("NOT POSSIBLE WITH CRUN's run: the proof is of what libseccomp compiled")
    asked = spec("echo", "ran")
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [{"names": ["kcmp", "quotactl"], "action": "SCMP_ACT_ERRNO"}]}
    before = seen(runtime)
    made = bundle(asked)
    assert runtime.must("run", "--bundle", str(made.path), "a").startswith("ran")
    assert len(json.loads((made.path / "config.json").read_text())["hooks"]["poststart"]) == 1
    new = {key: probes for key, probes in seen(runtime).items() if key not in before}
    assert len(new) == 1
    assert min(new.values()) > 1000
    other = bundle(asked)
    assert runtime.must("run", "--bundle", str(other.path), "b").startswith("ran")
    assert "poststart" not in json.loads((other.path / "config.json").read_text()).get("hooks", {})
    # What was lowered once is another pair; the hook of its first run makes place for that of its own.
    assert runtime.must("run", "--bundle", str(made.path), "c").startswith("ran")
    args = [one["args"][3:] for one in json.loads((made.path / "config.json").read_text())["hooks"]["poststart"]]
    assert args == [["c", "filter"]]


def test_what_crun_will_load_is_what_it_loads(runtime: Runtime, bundle: Maker, delegate: str) -> None:
    """The file that was compared is the filter of the running container, to the byte."""
    if delegate != CRUN:
        pytest.skip("of crun alone")
    asked = spec("sleep", "100")
    asked["linux"]["seccomp"] = PROFILE
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    file = runtime.root / "c" / "seccomp.bpf"
    promised = file.read_bytes()
    runtime.must("start", "c")
    assert loaded_filter.filters(runtime.state("c")["pid"]) == [promised]


def test_a_looser_file_of_cruns_starts_nothing(runtime: Runtime, bundle: Maker, delegate: str) -> None:
    if delegate != CRUN:
        pytest.skip("of crun alone")
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    asked = spec("sleep", "100")
    rule = {"names": ["kcmp", "acct"], "action": "SCMP_ACT_ERRNO"}
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [rule]}
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    (runtime.root / "c" / "seccomp.bpf").write_bytes(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # allow all
    refused = runtime.call("start", "c")
    assert refused.code == 1
    assert "the loaded filter" in refused.err
    assert runtime.status("c") == "created"


def test_marks_of_what_never_started_are_taken_back(runtime: Runtime, bundle: Maker) -> None:
    """Or every start on the host would go through Python for nothing."""
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    others = waiting(runtime)
    asked = spec("true")
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]}
    runtime.must("create", "--bundle", str(bundle(asked).path), "never")
    runtime.must("delete", "--force", "never")
    assert waiting(runtime) - others
    asked["linux"]["seccomp"] = PROFILE
    for name in ("a", "b"):  # the first may have a filter to compare, the second has none
        runtime.must("create", "--bundle", str(bundle(asked).path), name)
        runtime.must("start", name)
    assert not waiting(runtime)


PROVED = "/var/lib/agentshim/seccomp"
MINE = 'schema = 1\nname = "mine"\nabout = "a test"\nbase = "agent"\n'
JOIN = '[seccomp]\nadd = [{ names = ["syslog"], why = "a test", doc = "https://e.org" }]\n'
EDITS = {"looser": (MINE, MINE + JOIN), "stricter": (MINE + JOIN, MINE)}


@pytest.fixture
def mine(runtime: Runtime, delegate: str) -> Iterator[Runtime]:
    """`agentshim` with a policy of the host as its default, which a test writes."""
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program) or "dev" in str(runtime.program):
        pytest.skip("of the default policy alone")
    configure(runtime.room, CONFIG.replace('default = "agent"', 'default = "mine"'), delegate)
    yield runtime
    configure(runtime.room, CONFIG, delegate)


@pytest.mark.parametrize("edit", EDITS)
def test_a_policy_that_is_edited_before_the_start(mine: Runtime, bundle: Maker, edit: str) -> None:
    """What create has proved is one pair, what the policy says now is another: neither is the other's proof."""
    policies = mine.room.base / "config/policies"
    policies.mkdir(mode=0o755, exist_ok=True)
    before, after = EDITS[edit]
    (policies / "mine.toml").write_text(before)
    asked = spec("true")
    rule = {"names": ["ustat" if edit == "looser" else "sysfs"], "action": "SCMP_ACT_ERRNO"}
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [rule]}
    known = seen(mine)
    mine.must("create", "--bundle", str(bundle(asked).path), "c")
    (policies / "mine.toml").write_text(after)
    refused = mine.call("start", "c")
    assert refused.code == 1 and "create the container anew" in refused.err, str(refused)
    assert "report this" not in refused.err
    assert seen(mine) == known
    assert mine.status("c") == "created"
    (policies / "mine.toml").write_text(before)
    mine.must("start", "c")
    assert len(seen(mine)) == len(known) + 1


SPOILED = {
    "no directory": "rm -rf /var/lib/agentshim",
    "read-only": "mount --bind /var/lib/agentshim /var/lib/agentshim && mount -o remount,ro,bind /var/lib/agentshim",
    "full": "mount -t tmpfs -o mode=755,nr_inodes=1 tmpfs /var/lib/agentshim",
    "others may write": f"rm -rf {PROVED} && mkdir -m 777 {PROVED}",
}


@pytest.mark.parametrize("verb", ["start", "run"])
@pytest.mark.parametrize("how", SPOILED)
def test_a_place_that_takes_no_record(runtime: Runtime, bundle: Maker, how: str, verb: str) -> None:
    """The comparison is made, and the next start makes it again."""
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    asked = spec("echo", "ran")
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [{"names": ["uselib"], "action": "SCMP_ACT_ERRNO"}]}
    assert runtime.room.run(["sh", "-c", f"mkdir -p {PROVED} && {SPOILED[how]}"]).code == 0
    try:
        for name in ("a", "b"):
            made = str(bundle(asked).path)
            if verb == "run":
                assert runtime.must("run", "--bundle", made, name).startswith("ran")
                continue
            runtime.must("create", "--bundle", made, name)
            assert how == "no directory" or waiting(runtime)
            runtime.must("start", name)
    finally:
        runtime.room.run(["sh", "-c", "umount -l /var/lib/agentshim; rm -rf /var/lib/agentshim"])


def test_a_link_that_others_have_planted(runtime: Runtime, bundle: Maker) -> None:
    """Nothing is written where it leads, and it does not count as a record."""
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    asked = spec("true")
    asked["linux"]["seccomp"] = {**PROFILE, "syscalls": [{"names": ["vhangup"], "action": "SCMP_ACT_ERRNO"}]}
    others = waiting(runtime)
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    (key,) = waiting(runtime) - others
    target = runtime.home / "target"
    target.write_text("precious")
    plant = f"mkdir -p {PROVED}; chmod 777 {PROVED}; ln -s {target} {PROVED}/{key}.seen"
    assert runtime.room.run(["sh", "-c", plant]).code == 0
    try:
        runtime.must("start", "c")
        assert target.read_text() == "precious"
        runtime.must("create", "--bundle", str(bundle(asked).path), "d")
        assert key in waiting(runtime)
    finally:
        runtime.room.run(["rm", "-rf", PROVED])
