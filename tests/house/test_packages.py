"""What `make` does to the machine that it installs packages on, with an apt that writes down what it was asked."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from native import build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: make asks for root before it installs")

# Knows no package `absent`, refuses `rival`, and says what policy-rc.d answered while it installed.
APT = """#!/bin/sh
case "$*" in
*" -s "*absent* | *" -s "*rival*) echo "E: $*" >&2; exit 100 ;;
*" -s "* | update*) exit 0 ;;
esac
echo "$*" >> {directory}/asked
{directory}/policy-rc.d nginx start
echo "services: $?" >> {directory}/asked
[ "$FAILS" = "" ] || exit 100
[ "$WAITS" = "" ] || {{ touch {directory}/waits; sleep 2; }}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A directory with our apt-get, and a dpkg that has nothing but `had`."""
    for name, text in {
        "apt-get": APT.format(directory=tmp_path),
        "dpkg-query": "#!/bin/sh\necho had installed\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def command(machine: Path, wanted: str, *words: str) -> list[str]:
    given = ("PACKAGES=had", f"WANTED={wanted}", "TOOLS=", f"POLICY_RC={machine}/policy-rc.d")
    return ["make", "-s", "packages-test", *given, *words]


def environment(machine: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return {**kept, "PATH": f"{machine}:{os.environ['PATH']}", **more}


def make(machine: Path, wanted: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv, env = command(machine, wanted, *words), environment(machine, **more)
    return subprocess.run(argv, cwd=build.ROOT, env=env, capture_output=True, text=True, check=False)


def asked(machine: Path) -> list[str]:
    path = machine / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_nothing_is_asked_where_nothing_is_missing(machine: Path) -> None:
    done = make(machine, "had")
    assert (done.returncode, done.stdout, asked(machine)) == (0, "", [])


@pytest.mark.parametrize("fails", ["", "1"])
def test_no_service_starts_and_nothing_stays_that_forbids_it(machine: Path, fails: str) -> None:
    done = make(machine, "nginx", FAILS=fails)
    assert (done.returncode != 0) == bool(fails)
    assert asked(machine) == ["install -y -q --no-install-recommends nginx", "services: 101"]
    assert not (machine / "policy-rc.d").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_a_signal(machine: Path, number: signal.Signals) -> None:
    """As a terminal sends it: to all of make's group."""
    argv, env = command(machine, "nginx"), environment(machine, WAITS="1")
    running = subprocess.Popen(argv, cwd=build.ROOT, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (machine / "waits").exists():
        assert running.poll() is None
    os.killpg(running.pid, number)
    assert running.wait(10) != 0
    assert not (machine / "policy-rc.d").exists()


def test_an_administrators_policy_stays(machine: Path) -> None:
    own = machine / "policy-rc.d"
    own.write_text("#!/bin/sh\nexit 104\n")
    own.chmod(0o755)
    assert make(machine, "nginx").returncode == 0
    assert asked(machine)[-1] == "services: 104" and own.read_text() == "#!/bin/sh\nexit 104\n"


def test_what_a_killed_make_has_left_goes(machine: Path) -> None:
    argv, env = command(machine, "nginx"), environment(machine, WAITS="1")
    running = subprocess.Popen(argv, cwd=build.ROOT, env=env, start_new_session=True)
    while not (machine / "waits").exists():
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(10)
    assert (machine / "policy-rc.d").exists()
    assert make(machine, "nginx").returncode == 0
    assert not (machine / "policy-rc.d").exists()


@pytest.mark.parametrize("name", ["absent", "rival"])
def test_what_cannot_be_installed_is_told_and_the_rest_comes(machine: Path, name: str) -> None:
    done = make(machine, f"nginx {name}")
    assert done.returncode == 0 and f"its tests will skip: {name}" in done.stderr
    assert asked(machine)[0].endswith("--no-install-recommends nginx")
    required = make(machine, "nginx", f"PACKAGES=had {name}")
    assert required.returncode != 0 and f"{name} cannot be installed: E: " in required.stderr


def test_a_program_that_is_there_is_not_asked_for(machine: Path) -> None:
    done = make(machine, "had", "TOOLS=env:a-package no-such-program-here:another")
    assert done.returncode == 0 and asked(machine)[0].endswith("--no-install-recommends another")


def test_what_a_user_installs_needs_no_browser(machine: Path) -> None:
    """`make install` and `make build` ask for what they need; tests, for programs to try our policies on."""
    env = environment(machine)
    for target, has in {"install": False, "build": False, "test": True, "lint": True}.items():
        told = subprocess.run(
            ["make", "-n", target], cwd=build.ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert ("chromium" in told.stdout) == has, target
