"""Known flaws of what runs our containers, and the releases that fixed them. Rows of data.

Belongs here: the table, and whether a release has a fix. Next door: `versions` finds out what is installed, and whether
a distribution has the fix in an older release. Sources: the projects' own release notes and advisories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int, int]
FINAL = 1 << 30  # no release candidate


@dataclass(frozen=True)
class Advisory:
    """`fixed`: the first release with the fix in each branch that got one; `since`: the first that has the flaw;
    `grave`: a way out of a container that our own lowering does not close; `what`: in a few words.
    """

    name: str
    fixed: tuple[str, ...]
    what: str
    grave: bool = False
    since: str = "0.0"


RUNC = (
    Advisory("CVE-2019-5736", ("1.0.0-rc7",), "a container overwrites the host's runc", grave=True),
    Advisory("CVE-2021-30465", ("1.0.0-rc95",), "a race of mounts leads out of the root", grave=True),
    Advisory("CVE-2023-27561", ("1.1.5",), "masked paths are lost through a link at /proc", since="1.0.0-rc95"),
    Advisory("CVE-2023-28642", ("1.1.5",), "AppArmor and SELinux are lost through a link at /proc"),
    Advisory("CVE-2024-21626", ("1.1.12",), "a working directory of the host leaks in", grave=True),
    Advisory("CVE-2024-45310", ("1.1.14", "1.2.0-rc.3"), "empty files are made on the host"),
    Advisory("CVE-2025-31133", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "masked paths are written through", grave=True),
    Advisory("CVE-2025-52565", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "/dev/console is mounted elsewhere", grave=True),
    Advisory("CVE-2025-52881", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "writes to /proc are led astray", grave=True),
    Advisory(
        "CVE-2026-41579", ("1.3.6", "1.4.3", "1.5.0-rc.3"), "an image's link at /dev writes on the host, a little"
    ),
    Advisory("CVE-2026-119101", ("1.3.7", "1.4.4", "1.5.3", "1.6.0-rc.2"), "only where a policy grants restore"),
)
CRUN = (
    Advisory("CVE-2019-18837", ("0.10.5",), "an image's links lead out of the root", grave=True),
    Advisory("CVE-2022-27650", ("1.4.4",), "exec leaves inheritable capabilities"),
    Advisory("CVE-2025-24965", ("1.20",), "only with krun: an image's link leads out of the root"),
    Advisory("CVE-2026-30892", ("1.27",), "exec --user 1 is taken for root", since="1.19"),
    Advisory("CVE-2026-47766", ("1.28",), "an image's link at /dev writes on the host, a little"),
    Advisory("CVE-2026-84042", ("1.30",), "only with krun and passt: a program of the image runs unconfined"),
    Advisory("CVE-2026-88264", ("1.30",), "only where nothing is mounted at /dev: a file is made on the host"),
    Advisory("CVE-2026-88265", ("1.30",), "only where nothing is mounted at /dev: a file of the host is written"),
)
# Filters that come out weaker are found by our proof before a container starts; other runtimes have none.
LIBSECCOMP = (
    Advisory("CVE-2019-9893", ("2.4.0",), "comparisons of 64 bits are compiled wrong", grave=True),
    Advisory("GHSA-4q85-33p6-j5g6", ("2.6.1",), "merged comparisons weaken a filter; ours are proved, runc's are not"),
    Advisory("GHSA-46fr-jh49-xvhx", ("2.6.1",), "too large a filter frees memory twice; ours are kept small"),
    Advisory("GHSA-2hqh-5c36-grrm", ("2.6.1",), "too large a filter writes beyond its memory; ours are kept small"),
)
TABLE = {"runc": RUNC, "crun": CRUN, "libseccomp": LIBSECCOMP}
LEAST_LIBSECCOMP = "2.5.0"

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]rc\.?(\d+))?")


def version(text: str) -> Version | None:
    """The first version in a text, as a value that can be compared; None without one."""
    found = _VERSION.search(text)
    if not found:
        return None
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch or 0), FINAL if candidate is None else int(candidate)


def has_fix(advisory: Advisory, installed: Version) -> bool:
    """Whether a release has the fix, or never had the flaw: a branch newer than all that were mended was begun with it,
    an older one never got it.
    """
    fixes = [found for found in map(version, advisory.fixed) if found]
    since = version(advisory.since)
    if since and installed < since:
        return True
    if installed[:2] > max(fixes)[:2]:
        return True
    return any(fix[:2] == installed[:2] and installed >= fix for fix in fixes)
