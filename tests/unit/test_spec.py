"""spec: the vocabulary against the OCI schema, and what check() refuses."""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import spec
from shim.errors import Bug, Invalid

REPO = Path(__file__).parents[2]
SHARED = Path(os.environ.get("AGENTSHIM_SHARED", REPO.parent / "shared"))
OCI = SHARED / "data" / "oci"
PLATFORMS = {"solaris", "windows", "vm", "zos", "freebsd"}
OLDER = {"linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM"}  # in 1.1 and 1.2, gone from the 1.3.0 schema
RELAXED = {"linux.resources.pids.limit"}  # required by the schema, left out by specs-go 1.3 when unset
WIDER = {"linux.devices[].fileMode"}  # Go's os.FileMode has more bits than the schema allows

MINIMAL: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"cwd": "/", "args": ["sh"]},
    "root": {"path": "rootfs"},
}


def with_(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with the key at dotted `path` set."""
    out = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    here = out
    for name in parents:
        here = here.setdefault(name, {})
    here[last] = value
    return out


def schema() -> Any:
    if not OCI.is_dir():
        pytest.skip(f"NO OCI SCHEMAS at {OCI}: set AGENTSHIM_SHARED")
    return {file.name: json.loads(file.read_text()) for file in OCI.glob("*.json")}


def resolved(files: Any, node: Any, file: str) -> tuple[Any, str]:
    """`node` with its references followed and the parts of allOf and anyOf joined."""
    while "$ref" in node:
        name, _, pointer = node["$ref"].partition("#")
        file = name or file
        node = files[file]
        for step in pointer.strip("/").split("/"):
            node = node[step]
    out = dict(node)
    for part in [*node.get("allOf", ()), *node.get("anyOf", ())]:
        inner, inner_file = resolved(files, part, file)
        properties = {key: (value, inner_file) for key, value in inner.get("properties", {}).items()}
        out = {**inner, **{k: v for k, v in out.items() if k not in ("allOf", "anyOf")}}
        out["parts"] = {**node.get("parts", {}), **out.get("parts", {}), **properties}
        out["required"] = sorted({*out.get("required", ()), *inner.get("required", ())})
    return out, file


def schema_keys(files: Any, node: Any, file: str, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted path, kind, detail) of every key of the Linux schema; [] is an item, * a free key."""
    node, file = resolved(files, node, file)
    properties = {key: (value, file) for key, value in node.get("properties", {}).items()} | node.get("parts", {})
    free = list(node.get("patternProperties", {}).values()) or (
        [node["additionalProperties"]] if isinstance(node.get("additionalProperties"), dict) else []
    )
    if properties:
        yield path, "object", frozenset(node.get("required", ()))
        for key, (value, where) in properties.items():
            if path or key not in PLATFORMS:
                yield from schema_keys(files, value, where, f"{path}.{key}" if path else key)
            else:
                yield key, "platform", None
    elif free:
        yield path, "map", None
        yield from schema_keys(files, free[0], file, path + ".*")
    elif node["type"] == "array":
        yield path, "array", None
        yield from schema_keys(files, node["items"], file, path + "[]")
    elif node["type"] == "integer":
        yield path, "integer", (node.get("minimum"), node.get("maximum"))
    else:
        yield path, node["type"], None


def our_keys(shape: spec.Shape, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """The same of shim.spec."""
    if isinstance(shape, spec.Object):
        yield path, "object", frozenset(shape.required)
        for key, inner in shape.fields.items():
            yield from our_keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(shape, spec.Map):
        yield path, "map", None
        yield from our_keys(shape.inner, path + ".*")
    elif isinstance(shape, spec.List):
        yield path, "array", None
        yield from our_keys(shape.inner, path + "[]")
    elif isinstance(shape, tuple):
        yield path, "integer", shape
    elif isinstance(shape, spec.Platform):
        yield path, "platform", None
    else:
        yield path, "string" if shape is str else "boolean", None


def test_the_vocabulary_is_the_schemas() -> None:
    files = schema()
    theirs = {
        path: (kind, detail)
        for path, kind, detail in schema_keys(files, files["config-schema.json"], "config-schema.json")
    }
    ours = {path: (kind, detail) for path, kind, detail in our_keys(spec.SPEC)}
    assert set(ours) - set(theirs) == OLDER
    assert set(theirs) - set(ours) == set()
    for path, (kind, detail) in theirs.items():
        assert ours[path][0] == kind, path
        if kind == "object" and path:
            missing = {f"{path}.{key}" for key in detail - ours[path][1]}
            assert missing <= RELAXED, path
            assert ours[path][1] <= detail, path
        if kind == "integer" and path not in WIDER:
            assert in_range(ours[path][1], detail), (path, ours[path][1], detail)


def in_range(ours: tuple[int, int], theirs: tuple[int | None, int | None]) -> bool:
    """Where the schema gives a bound, ours is that bound; where it gives none, ours is that of Go's type."""
    return all(theirs[end] in (None, ours[end]) for end in (0, 1))


def test_each_key_of_the_schema_has_one_owner() -> None:
    files = schema()
    keys = [
        p for p, _, _ in schema_keys(files, files["config-schema.json"], "config-schema.json") if p and "[]" not in p
    ]
    leaves = [key for key in keys if not any(other.startswith(key + ".") for other in keys)]
    for leaf in leaves:
        owners = [key for key in spec.OWNERS if leaf == key or leaf.startswith(key + ".")]
        assert len(owners) == 1, (leaf, owners)
    assert set(spec.OWNERS) <= set(keys), "no owner of a key that is not in the schema"


def test_the_rooms_own_what_the_table_says() -> None:
    seen = set()
    for file in sorted((REPO / "shim" / "dim").glob("[a-z]*.py")):
        try:
            module = importlib.import_module(f"shim.dim.{file.stem}")
        except (ImportError, SyntaxError) as error:
            warnings.warn(f"shim.dim.{file.stem} cannot be imported: {error}", ImportWarning, stacklevel=1)
            continue
        keys = getattr(module, "KEYS", None)
        if keys is None:
            continue
        seen.add(module.NAME)
        assert set(keys) == {key for key, room in spec.OWNERS.items() if room == module.NAME}, file.stem
    missing = set(spec.OWNERS.values()) - seen - {"carried", "refused"}
    if missing:
        pytest.skip(f"NOT WRITTEN YET: {sorted(missing)}")


@pytest.mark.parametrize(
    "name", ["good-linux-netdevice", "good-linux-rdma", "good-minimal-for-start", "good-spec-example"]
)
def test_the_examples_of_the_specification(name: str) -> None:
    schema()
    example = json.loads((OCI / "examples" / f"{name}.json").read_text())
    example = {**MINIMAL, **example, "ociVersion": "1.3.0"}  # some have no process, or are of version 0.5
    new, dropped = spec.check(example, "drop")
    old = ["linux.resources.oomScoreAdj"] if name == "good-spec-example" else []  # of before 1.0
    assert dropped == old
    assert new == example or old


@pytest.mark.parametrize("name", ["bad-linux-netdevice", "bad-linux-rdma", "good-zos-minimal"])
def test_the_bad_examples_of_the_specification(name: str) -> None:
    schema()
    example = json.loads((OCI / "examples" / f"{name}.json").read_text())
    with pytest.raises(Invalid):
        spec.check({**MINIMAL, **example})


def test_what_is_well_formed_comes_back_itself() -> None:
    new, dropped = spec.check(MINIMAL)
    assert new is MINIMAL
    assert dropped == []


WRONG = [
    ("process", [], "process"),
    ("process", "sh", "process"),
    ("process.user", {"uid": "1000"}, "process.user.uid"),  # root, to crun
    ("process.user", {"uid": 1000.0}, "process.user.uid"),
    ("process.user", {"uid": True}, "process.user.uid"),
    ("process.user", {"uid": -1}, "process.user.uid"),
    ("process.user", {"uid": 2**32}, "process.user.uid"),
    ("process.user", {"additionalGids": [1, None]}, "process.user.additionalGids[1]"),
    ("process.noNewPrivileges", 1, "process.noNewPrivileges"),
    ("process.noNewPrivileges", "true", "process.noNewPrivileges"),
    ("process.args", "sh", "process.args"),
    ("process.args", ["sh", None], "process.args[1]"),
    ("process.args", ["sh", 5], "process.args[1]"),
    ("process.args", [], "process.args"),
    ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": -1, "hard": 1}], "process.rlimits[0].soft"),
    ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1}], "process.rlimits[0].hard"),
    ("process.oomScoreAdj", 2**31, "process.oomScoreAdj"),
    ("hostname", 5, "hostname"),
    ("mounts", {}, "mounts"),
    ("mounts", [{"type": "proc"}], "mounts[0].destination"),
    ("mounts", [None], "mounts[0]"),
    ("annotations", {"a": 1}, "annotations.a"),
    ("annotations", {"a": None}, "annotations.a"),
    ("annotations", [], "annotations"),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout"),
    ("linux.namespaces", [{"path": "/x"}], "linux.namespaces[0].type"),
    ("linux.seccomp", {"defaultAction": None}, "linux.seccomp.defaultAction"),
    (
        "linux.seccomp",
        {"defaultAction": "x", "syscalls": [{"names": "read", "action": "x"}]},
        "linux.seccomp.syscalls[0].names",
    ),
    ("linux.resources", {"memory": {"limit": 1.5}}, "linux.resources.memory.limit"),
    ("linux.resources", {"memory": {"limit": 2**63}}, "linux.resources.memory.limit"),
    ("linux.resources", {"rdma": {"mlx": {"hcaHandle": 1}}}, "linux.resources.rdma.mlx.hcaHandle"),
    ("linux.netDevices", {"eth0": {"name": 1}}, "linux.netDevices.eth0.name"),
    ("ociVersion", "2.0.0", "ociVersion"),
    ("ociVersion", "0.5.0-dev", "ociVersion"),
    ("ociVersion", None, "ociVersion"),
    ("root", {"path": None}, "root.path"),
    ("root", None, "root"),
    ("process", None, "process"),
    ("windows", {}, "windows"),
    ("vm", {}, "vm"),
    ("freebsd", {}, "freebsd"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG)
@pytest.mark.parametrize("unknown", ["refuse", "drop"])
def test_refused_by_its_dotted_key(path: str, value: Any, named: str, unknown: str) -> None:
    if unknown == "drop" and named.endswith("hcaHandle"):
        return
    with pytest.raises(Invalid) as caught:
        spec.check(with_(path, value), unknown)
    assert caught.value.key == named
    assert str(caught.value).startswith(f"spec: {named}: asked ")


@pytest.mark.parametrize("missing", ["ociVersion", "process", "root"])
def test_required_keys(missing: str) -> None:
    broken = {key: value for key, value in MINIMAL.items() if key != missing}
    with pytest.raises(Invalid, match=missing):
        spec.check(broken)


@pytest.mark.parametrize("whole", [None, [], "x", 1, True])
def test_no_object_at_all(whole: object) -> None:
    with pytest.raises(Invalid, match="an object"):
        spec.check(whole)


@pytest.mark.parametrize("key", ["PROCESS", "Process", "proceſſ", "proceß", "linuX"])
@pytest.mark.parametrize("unknown", ["refuse", "drop"])
def test_a_known_key_in_another_case(key: str, unknown: str) -> None:
    with pytest.raises(Invalid, match="runtimes differ on its case"):
        spec.check({**MINIMAL, key: {}}, unknown)


@pytest.mark.parametrize("unknown", ["refuse", "drop"])
def test_every_character_that_go_folds(unknown: str) -> None:
    """Go folds a letter with all that share its simple case folding: for ASCII these two more, and no others."""
    assert [
        chr(c) for c in range(128, sys.maxunicode + 1) if len(chr(c).casefold()) == 1 and chr(c).casefold() < "\x80"
    ] == [
        "ſ",
        "\u212a",
    ]
    for asked in ({**MINIMAL, "hoo\u212as": {}}, with_("process.noNewPrivilegeſ", False)):
        with pytest.raises(Invalid, match="case"):
            spec.check(asked, unknown)


def test_unknown_keys_are_refused_or_dropped() -> None:
    asked = with_("process.foo", {"x": 1})
    asked["linux"] = {"namespaces": [{"type": "pid", "bar": None}], "!": 1}
    asked["annotations"] = {"Process": "free", "": "form"}
    with pytest.raises(Invalid, match=r"process\.foo"):
        spec.check(asked)
    before = copy.deepcopy(asked)
    new, dropped = spec.check(asked, "drop")
    assert dropped == ["process.foo", "linux.namespaces[0].bar", "linux.!"]
    assert new == {**MINIMAL, "linux": {"namespaces": [{"type": "pid"}]}, "annotations": asked["annotations"]}
    assert list(new) == list(asked), "order is kept"
    assert asked == before, "what was given is not changed"
    assert spec.check(new) == (new, [])


def test_null_is_absent() -> None:
    asked = with_("process.user", None)
    asked |= {"hooks": None, "annotations": None, "windows": None, "linux": {"resources": {"pids": {"limit": None}}}}
    new, dropped = spec.check(asked)
    assert new == {**MINIMAL, "linux": {"resources": {"pids": {}}}}
    assert dropped == []


def test_process_and_resources_alone() -> None:
    process = {"cwd": "/", "args": ["id"], "foo": 1}
    assert spec.check_process(process, "drop") == ({"cwd": "/", "args": ["id"]}, ["process.foo"])
    with pytest.raises(Invalid, match=r"process\.NoNewPrivileges"):
        spec.check_process({**process, "NoNewPrivileges": False}, "drop")
    with pytest.raises(Invalid, match=r"process\.cwd"):
        spec.check_process({"args": ["id"]})
    with pytest.raises(Invalid, match=r"process\.args"):
        spec.check_process({"cwd": "/"})
    assert spec.check_resources({"memory": {"limit": 0}, "cpu": None}) == ({"memory": {"limit": 0}}, [])
    with pytest.raises(Invalid, match=r"linux\.resources\.Memory"):
        spec.check_resources({"Memory": {}}, "drop")


def test_an_unknown_mode_is_our_bug() -> None:
    with pytest.raises(Bug):
        spec.check(MINIMAL, "keep")
