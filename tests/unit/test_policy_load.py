"""shim.policy: which policy applies, whose files are believed, and when a compiled form is made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shim import policy
from shim.cold.policy import compile as cold
from shim.errors import HostError, Invalid, Refused, ShimError
from tests.unit.policy_host import Host, make_host

REPOSITORY = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="LOUD: needs root to give files another owner")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return make_host(tmp_path, monkeypatch)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled rather than read, in order."""
    done: list[str] = []
    one, two = cold.compile, cold.compile_config

    def compile_policy(name: str, *rest: object) -> dict[str, object]:
        done.append(name)
        return one(name, *rest)  # type: ignore[arg-type]

    def compile_config(etc: str, var: str) -> dict[str, object]:
        done.append("config.toml")
        return two(etc, var)

    monkeypatch.setattr(cold, "compile", compile_policy)
    monkeypatch.setattr(cold, "compile_config", compile_config)
    return done


# ---------------------------------------------------------------- no configuration at all


def test_without_etc_the_built_in_defaults_hold(tmp_path: Path) -> None:
    config = policy.config(str(tmp_path / "none"), str(tmp_path / "var"))
    assert {key: getattr(config, key) for key in policy.DEFAULTS} == policy.DEFAULTS
    assert (config.default, config.limit, config.mode) == ("agent", "dev", "enforce")


@pytest.mark.parametrize("name", ["locked", "agent", "web", "dev"])
def test_built_in_policies_are_only_read(tmp_path: Path, compiled: list[str], name: str) -> None:
    found = policy.load(name, policy.config(str(tmp_path / "none"), str(tmp_path / "var")))
    assert (found.name, found.limit["name"], compiled) == (name, "dev", [])
    assert found.digest.startswith("sha256:")


def test_identity_is_refused_within_the_built_in_limit(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="identity: capabilities: asked top"):
        policy.load("identity", policy.config(str(tmp_path / "none"), str(tmp_path / "var")))


def test_identity_is_read_where_it_is_the_limit(host: Host, compiled: list[str]) -> None:
    host.configure('default = "identity"\nlimit = "identity"\n')
    assert set(host.load("identity").sections.values()) == {"top"}
    assert host.load("agent").name == "agent"
    assert compiled == ["config.toml"]


def test_the_hot_path_imports_nothing_cold() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from shim import policy; "
        "policy.load('agent', policy.config('/nonexistent/etc', '/nonexistent/var')); print(*sorted(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    heavy = {"json", "re", "enum", "tomllib", "jsonschema", "typing", "hashlib", "datetime", "pathlib", "functools"}
    loaded = set(run.stdout.split())
    assert not heavy & loaded
    assert not [name for name in loaded if name.startswith("shim.cold")]


# ---------------------------------------------------------------- select


def config_with(**values: object) -> policy.Config:
    return policy.Config({**values})


@pytest.mark.parametrize(
    ("execfn", "annotation", "expected"),
    [
        ("/usr/local/bin/agentshim", None, "agent"),
        ("/usr/local/bin/agentshim-web", None, "web"),
        ("agentshim-locked", None, "locked"),
        ("/usr/bin/runc", None, "agent"),
        ("", None, "agent"),
        ("/opt/agentshim-web/runc", None, "agent"),
        ("/usr/bin/agentshim", "locked", "locked"),
        ("/usr/bin/agentshim", "agent", "agent"),
        ("/usr/bin/agentshim-web", "web", "web"),
    ],
)
def test_selects(execfn: str, annotation: str | None, expected: str) -> None:
    annotations = {} if annotation is None else {"agentshim.policy": annotation}
    assert policy.select(policy.Config({}), execfn, annotations) == expected


@pytest.mark.parametrize(
    ("execfn", "annotation"),
    [
        ("agentshim-identity", None),
        ("agentshim-", None),
        ("agentshim-../../root/evil", None),
        ("agentshim", "dev"),
        ("agentshim", "identity"),
        ("agentshim", ""),
        ("agentshim", "../../tmp/evil"),
        ("agentshim-locked", "agent"),  # attack: the annotation undoes what the runtime's name has fixed
        ("agentshim-web", "locked"),
    ],
)
def test_refuses_to_select(execfn: str, annotation: str | None) -> None:
    annotations = {} if annotation is None else {"agentshim.policy": annotation}
    name = execfn.rpartition("/")[2]
    if name == "evil":
        assert policy.select(policy.Config({}), execfn, annotations) == "agent"
        return
    with pytest.raises(Refused):
        policy.select(policy.Config({}), execfn, annotations)


def test_an_images_annotation_can_only_lower_with_the_defaults() -> None:
    """podman before 5.0 copies annotations of the image: whatever they say, the result is not above the default."""
    for name in policy.BUILTIN:
        try:
            chosen = policy.select(policy.Config({}), "agentshim", {"agentshim.policy": name})
        except Refused:
            continue
        assert chosen in ("agent", "locked")


def test_the_config_says_what_may_be_chosen() -> None:
    config = config_with(names=["mine"], annotations=["web"], default="locked")
    assert policy.select(config, "agentshim-mine", {}) == "mine"
    assert policy.select(config, "agentshim", {"agentshim.policy": "web"}) == "web"
    with pytest.raises(Refused, match="asked web, ceiling mine"):
        policy.select(config, "agentshim-web", {})


@pytest.mark.parametrize("name", ["", "-web", "Web", "a/b", "..", "a.b", "a" * 64, "wéb", "web\n", "missing"])
def test_no_such_policy(host: Host, name: str) -> None:
    with pytest.raises(Refused):
        policy.load(name, host.config())


# ---------------------------------------------------------------- config.toml


def test_config_is_read_and_then_kept(host: Host, compiled: list[str]) -> None:
    host.configure('delegate = "/usr/bin/crun"\nmode = "strict"\nannotations = ["locked", "web"]\n')
    for _ in range(2):
        config = host.config()
        assert (config.delegate, config.mode, config.annotations) == ("/usr/bin/crun", "strict", ["locked", "web"])
    assert compiled == ["config.toml"]


def test_config_changed_in_the_same_size_and_mtime_is_read_anew(host: Host) -> None:
    path = host.configure('mode = "strict"\n')
    assert host.config().mode == "strict"
    before = path.stat()
    path.write_text('mode = "audit" \n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert host.config().mode == "audit"


def test_a_config_that_goes_away_leaves_the_defaults(host: Host) -> None:
    path = host.configure('default = "locked"\n')
    assert host.config().default == "locked"
    path.unlink()
    assert host.config().default == "agent"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode = 'loud'\n", "config.toml:1 mode"),
        ("\nlimits = 'dev'\n", "config.toml:2 limits"),
        ("delegate = 'runc'\n", "an absolute path"),
        ("default = ", "config.toml:1"),
        ("schema = 2\nfuture = true\n", "upgrade agentshim"),
        ("annotations = 'locked'\n", "type array"),
        ("names = ['../x']\n", "a name of"),
    ],
)
def test_a_wrong_config_is_said_with_its_line(host: Host, text: str, said: str) -> None:
    host.configure(text)
    with pytest.raises(Invalid) as error:
        host.config()
    assert said in str(error.value)


def test_a_config_in_latin_1(host: Host) -> None:
    host.configure("").write_bytes(b'# ok\nmode = "\xe9"\n')
    with pytest.raises(Invalid, match=r"config\.toml:2: asked byte 0xe9"):
        host.config()


# ---------------------------------------------------------------- whose files are believed


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nonexistent/file")


def alien(path: Path) -> None:
    os.chown(path, 12345, 0)


BAD: list[Callable[[Path], None]] = [
    lambda path: path.chmod(0o664),
    lambda path: path.chmod(0o666),
    lambda path: path.parent.chmod(0o775),
    lambda path: path.parent.chmod(0o1777),
    lambda path: path.parent.parent.chmod(0o777),
    fifo,
    link,
    directory,
    dangling,
    pytest.param(alien, marks=needs_root),  # type: ignore[list-item]
    pytest.param(lambda path: alien(path.parent), marks=needs_root),  # type: ignore[list-item]
    pytest.param(lambda path: alien(path.parent.parent), marks=needs_root),  # type: ignore[list-item]
]


@pytest.mark.parametrize("already", [False, True], ids=["first", "compiled before"])
@pytest.mark.parametrize("worsen", BAD)
def test_a_policy_that_others_could_change_is_refused(
    host: Host, worsen: Callable[[Path], None], already: bool
) -> None:
    path = host.policy("mine", 'base = "locked"\n')
    if already:
        host.load("mine")
    worsen(path)
    with pytest.raises(HostError) as error:
        host.load("mine")
    assert str(host.etc) in error.value.key


@pytest.mark.parametrize("already", [False, True], ids=["first", "compiled before"])
@pytest.mark.parametrize("worsen", BAD)
def test_a_config_that_others_could_change_is_refused(
    host: Host, worsen: Callable[[Path], None], already: bool
) -> None:
    path = host.configure('mode = "strict"\n')
    if already:
        host.config()
    worsen(path)
    with pytest.raises(HostError):
        host.config()


def test_a_sticky_directory_above_is_fine(host: Host) -> None:
    host.etc.parent.chmod(0o1777)
    host.configure('mode = "strict"\n')
    assert host.config().mode == "strict"


@pytest.mark.parametrize("which", ["etc", "etc/policies"])
def test_a_link_in_place_of_a_directory_is_refused(host: Host, tmp_path: Path, which: str) -> None:
    host.configure('mode = "strict"\n')
    host.policy("mine", 'base = "locked"\n')
    (tmp_path / which).rename(tmp_path / "elsewhere")
    (tmp_path / which).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="not a directory, or a link"):
        host.load("mine")


def test_a_link_above_is_followed_and_both_ways_are_checked(host: Host, tmp_path: Path) -> None:
    host.configure('mode = "strict"\n')
    (tmp_path / "link").symlink_to(tmp_path)
    assert policy.config(str(tmp_path / "link" / "etc"), str(host.var)).mode == "strict"
    tmp_path.chmod(0o777)
    with pytest.raises(HostError, match="mode 0777"):
        policy.config(str(tmp_path / "link" / "etc"), str(host.var))


def in_namespace(etc: Path) -> subprocess.CompletedProcess[str]:
    """Reads a config in a user namespace that maps nobody, where every owner shows as 65534."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from shim import policy; print(policy.config(sys.argv[2]))"
    command = ["unshare", "--user", sys.executable, "-I", "-c", code, str(REPOSITORY), str(etc)]
    return subprocess.run(command, capture_output=True, text=True)


@needs_root
def test_in_a_user_namespace_the_hosts_files_are_believed(host: Host) -> None:
    if subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode:
        pytest.skip("LOUD: no user namespaces here")
    host.configure('mode = "strict"\n')
    run = in_namespace(host.etc)
    assert "mode='strict'" in run.stdout, run.stderr
    (host.etc / "config.toml").chmod(0o666)
    assert "HostError" in in_namespace(host.etc).stderr


@needs_root
def test_outside_of_one_nobody_is_not_root(host: Host) -> None:
    os.chown(host.configure(""), policy.OVERFLOW, 0)
    with pytest.raises(HostError, match="owner uid 65534"):
        host.config()


def test_refusals_do_not_use_words_that_engines_turn_into_exit_codes(host: Host) -> None:
    path = host.configure("")
    texts = []
    for worsen in (lambda p: p.chmod(0o666), link, dangling):
        worsen(path)
        with pytest.raises(ShimError) as error:
            host.config()
        texts.append(str(error.value).lower())
        path.unlink(missing_ok=True)
        path = host.configure("")
    for text in texts:
        assert not any(word in text for word in ("permission denied", "operation not permitted", "no such file"))


def test_a_compiled_form_that_others_could_have_written_is_not_believed(host: Host, compiled: list[str]) -> None:
    host.policy("mine", 'base = "locked"\n')
    host.load("mine")
    stored = host.var / "policies" / "mine.json"
    forged = json.loads(stored.read_text())
    forged["sections"]["capabilities"] = "top"
    stored.write_text(json.dumps(forged))
    stored.chmod(0o666)
    assert host.load("mine").sections["capabilities"] != "top"
    assert compiled == ["mine", "mine"]
    stored.write_text(json.dumps(forged))
    stored.parent.chmod(0o777)
    assert host.load("mine").sections["capabilities"] != "top"


# ---------------------------------------------------------------- compiled anew


def test_compiled_once(host: Host, compiled: list[str]) -> None:
    host.policy("mine", 'base = "locked"\n')
    first, second = host.load("mine"), host.load("mine")
    assert (first, compiled) == (second, ["mine"])
    stored = host.var / "policies" / "mine.json"
    assert stored.stat().st_mode & 0o7777 == 0o600
    assert {one.stat().st_mode & 0o7777 for one in (host.var, host.var / "policies")} == {0o700}


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def rewrite(path: Path) -> None:
    before = path.stat()
    path.write_text(path.read_text().replace("64", "32"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(path.read_text().replace("64", "32"))
    new.replace(path)


def grow(path: Path) -> None:
    path.write_text(path.read_text().replace("64", "32") + "\n")


@pytest.mark.parametrize("change", [rewrite, replace, grow])
@pytest.mark.parametrize("which", ["mine", "middle"])
def test_compiled_anew_when_a_file_of_the_chain_changes(
    host: Host, compiled: list[str], change: Callable[[Path], None], which: str
) -> None:
    paths = {
        "middle": host.policy("middle", 'base = "locked"\n[resources]\npids = 64\n'),
        "mine": host.policy("mine", 'base = "middle"\n[rlimits]\nnofile = 64\n'),
    }
    first = host.load("mine")
    change(paths[which])
    second = host.load("mine")
    section, key = ("resources", "pids") if which == "middle" else ("rlimits", "nofile")
    assert (first.sections[section][key], second.sections[section][key]) == (64, 32)
    assert first.digest != second.digest
    assert compiled == ["mine", "mine"]


def test_a_touch_compiles_anew_and_changes_nothing(host: Host, compiled: list[str]) -> None:
    path = host.policy("mine", 'base = "locked"\n')
    first = host.load("mine")
    touch(path)
    assert host.load("mine") == first
    assert compiled == ["mine", "mine"]


def test_a_policy_that_goes_away_is_refused(host: Host) -> None:
    path = host.policy("mine", 'base = "locked"\n')
    host.load("mine")
    path.unlink()
    with pytest.raises(Refused, match="asked mine"):
        host.load("mine")


def test_a_base_that_goes_away_is_refused(host: Host) -> None:
    base = host.policy("middle", 'base = "locked"\n')
    host.policy("mine", 'base = "middle"\n')
    host.load("mine")
    base.unlink()
    with pytest.raises(Refused, match="asked middle"):
        host.load("mine")


def test_another_limit_compiles_anew(host: Host, compiled: list[str]) -> None:
    host.policy("mine", 'base = "web"\n')
    assert host.load("mine").limit["name"] == "dev"
    host.policy("ceiling", 'base = "agent"\n')
    host.configure('limit = "ceiling"\n')
    with pytest.raises(Refused, match=r"mine: capabilities: .*raise limit in config\.toml above ceiling"):
        host.load("mine")
    with pytest.raises(Refused, match="web: capabilities"):
        host.load("web")  # built-in, compiled ahead within dev, and yet above this host's limit
    assert host.load("locked").limit["name"] == "ceiling"


def test_a_limit_that_is_lowered_takes_compiled_policies_back(host: Host) -> None:
    limit = host.policy("ceiling", 'base = "dev"\n')
    host.configure('limit = "ceiling"\n')
    host.policy("mine", 'base = "dev"\n')
    host.load("mine")
    limit.write_text(limit.read_text().replace('"dev"', '"agent"'))
    with pytest.raises(Refused, match="mine: capabilities"):
        host.load("mine")


def test_compiled_in_memory_where_var_cannot_be_written(host: Host, compiled: list[str]) -> None:
    host.var.parent.joinpath("var").write_text("a file where the directory should be")
    host.policy("mine", 'base = "locked"\n')
    assert host.load("mine") == host.load("mine")
    assert compiled == ["mine", "mine"]


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"format": 0}', b"\xff", b'{"format":1}'[:-1]])
def test_a_torn_compiled_form_is_made_anew(host: Host, compiled: list[str], torn: bytes) -> None:
    host.policy("mine", 'base = "locked"\n')
    first = host.load("mine")
    (host.var / "policies" / "mine.json").write_bytes(torn)
    assert host.load("mine") == first
    assert compiled == ["mine", "mine"]


def test_compiled_anew_when_a_join_expires(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.policy("mine", '[capabilities]\nadd = [{ names = ["CHOWN"], why = "one day", expires = 2100-01-01 }]\n')
    first = host.load("mine")
    assert first.sections["capabilities"]["grant"] == ["CHOWN"]
    assert first.expires == 4102444800
    monkeypatch.setattr(time, "time", lambda: 4102444800.0)
    assert "grant" not in host.load("mine").sections["capabilities"]


def test_compiled_anew_when_a_top_expires(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a policy and in the limit that it was held to: a container of the next second is not under it."""
    said = 'base = "dev"\nwhy = "a while"\ndoc = "https://e.org"\nresources = "top"\nexpires = 2100-01-01\n'
    host.configure('limit = "ceiling"\n')
    host.policy("ceiling", said)
    host.policy("mine", said)
    host.policy("follows", 'base = "dev"\n[resources]\npids = 9999\n')
    assert host.load("mine").sections["resources"] == "top"
    assert host.load("follows").expires == host.load("mine").expires == 4102444800
    monkeypatch.setattr(time, "time", lambda: 4102444800.0)
    assert host.load("mine").sections["resources"] == {"pids": 4096}
    with pytest.raises(Refused, match="follows: resources"):
        host.load("follows")


def test_a_file_of_the_host_cannot_take_a_built_in_name(host: Host) -> None:
    host.policy("agent", 'base = "dev"\n')
    with pytest.raises(Refused, match="another policy agent"):
        host.load("agent")
