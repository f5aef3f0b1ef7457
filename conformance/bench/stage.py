"""Setting the stage: the programs that take part, the namespaces, the contenders; and striking it all.

Belongs here: what `__main__` and `profile` share. Next door: `place` makes the namespaces.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from conformance.bench import docker, moby, network, place
from conformance.bench.life import Container
from conformance.bench.turns import Bench, cast, granted

RUNC = ("/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc")
CRUN = ("/usr/bin/crun", "/usr/sbin/crun")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that say which programs take part; `profile` has them too."""
    parser.add_argument("--shim", default=str(moby.REPOSITORY / "native/build/agentshim"), help="the launcher")
    parser.add_argument("--runc", default=_first(RUNC), help="the delegate, and the plain runtime compared with")
    parser.add_argument("--crun", default=_first(CRUN), help="the second delegate; '' for none")
    parser.add_argument("--python", help="the interpreter of our Python part (default: as the launcher finds it)")
    parser.add_argument("--library", type=Path, help="the directory that holds shim/ (default likewise)")


def settle(options: argparse.Namespace) -> None:
    """Fill --library and --python as the launcher would without a launch.conf."""
    options.shim = os.path.abspath(options.shim)
    here = Path(options.shim).parent
    in_tree = here.parts[-2:] == ("native", "build")
    installed = here.parent / "lib" / "agentshim"
    options.library = options.library or (installed if installed.is_dir() else moby.REPOSITORY)
    record = (here if in_tree else options.library) / "python"
    options.python = options.python or (record.read_text().strip() if record.is_file() else "/usr/bin/python3")


def obstacle(options: argparse.Namespace) -> str | None:
    """Why nothing can be measured here, or None."""
    reasons = {
        "needs root": os.geteuid() != 0,
        f"{options.shim}: not there; build it (make), or give --shim": not os.access(options.shim, os.X_OK),
        "runc is not installed": not options.runc,
        f"{docker.BUSYBOX}: install busybox-static": not docker.BUSYBOX.is_file(),
        f"{moby.profile_file()}: not there; set AGENTSHIM_SHARED": not moby.profile_file().is_file(),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _first(paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if os.access(path, os.X_OK)), None)


@contextmanager
def stage(options: argparse.Namespace) -> Iterator[Bench]:
    """A Bench in its own namespaces, all contenders ready; on leaving, no container and no control group is left."""
    where = place.Place(keep_launch_conf="/native/build/" not in options.shim)
    docker.furnish()
    where.furnish("runc", None if options.runc == _first(RUNC) else f'delegate = "{options.runc}"\n')
    if options.crun:
        where.furnish("crun", f'delegate = "{options.crun}"\n')
    spec = docker.config("true")
    contenders = cast(options.shim, options.runc, options.crun, spec)
    bench = Bench(where, contenders, spec, options.rounds, options.seed, options.python, options.library)
    try:
        plain = contenders["runc"]
        bench.cast["runc-granted"] = replace(plain, name="runc-granted", template=granted(bench))
        bench.cast |= network.contenders(where, contenders["shim"], options.runc)
        yield bench
    finally:
        _strike(bench)


def _strike(bench: Bench) -> None:
    """Remove what a failed or interrupted row left behind; silent where there is nothing."""
    for contender in bench.cast.values():
        if not contender.root.is_dir():
            continue
        bench.where.enter(contender.place)
        for left in contender.root.iterdir():
            bundle = docker.BUNDLES / left.name
            if bundle.is_dir():
                Container(contender, left.name, bundle).discard()
    os.chdir("/")
    place.sweep_cgroups(docker.CGROUP)
