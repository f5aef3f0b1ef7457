"""Where the packages that only cold paths need are found: the interpreter is started with -I -S and knows of none.

Belongs here: adding that directory to sys.path, checked. Next door: native/build.py and the Makefile record it.
"""

from __future__ import annotations

import os
import sys

from shim.errors import HostError, reason

LIBDIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def enable() -> str | None:
    """Append the directory of third-party packages to sys.path, last and once; the directory, None without one.

    HostError where the record or the directory could have been written by anyone but root.
    """
    directory = recorded(LIBDIR) or beside(LIBDIR)
    if directory is None:
        return None
    check(directory)
    if directory not in sys.path:
        sys.path.append(directory)
    return directory


def recorded(libdir: str) -> str | None:
    """What `make` (development tree) or `make install` wrote in the one-line file `site`; None without the file."""
    for record in (os.path.join(libdir, "native", "build", "site"), os.path.join(libdir, "site")):
        if os.path.exists(record):
            check(record)
            with open(record, encoding="utf-8") as lines:
                return lines.read().rstrip("\n")
    return None


def beside(libdir: str) -> str | None:
    """The site-packages of the prefix that a wheel was installed to: PREFIX/lib/agentshim has PREFIX/lib/python3.X."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    directory = os.path.join(os.path.dirname(libdir), version, "site-packages")
    return directory if os.path.isdir(directory) else None


def check(path: str) -> None:
    """HostError unless root alone can write `path`. In a user namespace the host's root shows as uid 65534."""
    try:
        st = os.stat(path)
    except OSError as error:
        raise HostError("site", path, reason(error), "a directory or file", "run make install again") from error
    owner = "root's, mode & 022 = 0"
    if st.st_uid not in (0, 65534) or st.st_mode & 0o022:
        asked = f"owner {st.st_uid}, mode {st.st_mode & 0o7777:o}"
        raise HostError("site", path, asked, owner, "chown it to root and take away the write bits of others")
