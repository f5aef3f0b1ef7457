"""The delegate and libseccomp against known flaws, with what a distribution has mended in an older release.

Belongs here: which release is installed, and whose package it is. Next door: `advisories` has the table.
A changelog speaks for the file that its package brought, of the version that the file says it is: no other.
A package whose changelog does not name a flaw may be mended all the same, or never have had it: a warning, no failure.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shim import policy, runc
from shim.cold.doctor.advisories import FINAL, LEAST_LIBSECCOMP, TABLE, Advisory, Version, has_fix, version
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host
from shim.cold.seccomp import libseccomp
from shim.errors import ShimError

DPKG = "/var/lib/dpkg"
NEWER = "install a newer {}, or your distribution's security update"


@dataclass(frozen=True)
class Package:
    """A distribution's package: its name, its version, its changelog ('' where it has none on this host), and whether
    the file that is there is the one that it brought.
    """

    name: str
    version: str
    changelog: str
    is_whole: bool


@dataclass(frozen=True)
class Installed:
    """A program or library: `kind` as in the table, what it says its version is, and its package, if one owns it."""

    kind: str
    told: str
    path: str
    package: Package | None


def config_of(host: Host) -> policy.Config:
    """The host's config.toml. ShimError as policy.config."""
    return policy.config(host.at(policy.ETC), host.at(policy.VAR))


def delegate_of(host: Host, config: policy.Config) -> str:
    """The delegate's path, '' without one; whether it can be trusted is not asked here."""
    return config.delegate or next((path for path in runc.PLACES if host.has(path)), "")


def delegate(host: Host) -> Iterator[Finding]:
    """The delegate: found, root's alone, and without known flaws; then the libseccomp that it brings."""
    path = delegate_of(host, config_of(host))
    if not path:
        todo = "install runc, or name a delegate in /etc/agentshim/config.toml"
        yield Finding(FAIL, "delegate.found", f"none of {', '.join(runc.PLACES)}", todo)
        return
    try:
        found = runc.Delegate(host.at(path))
    except ShimError as error:
        yield Finding(FAIL, "delegate.found", f"{path}: {error.asked}", error.todo, path)
        return
    told = host.run(path, "--version")
    first = told.partition("\n")[0]
    yield Finding(OK, "delegate.found", f"{path}: {first or 'no version'}", subject=path)
    yield from judged("delegate", Installed(found.kind, first, path, package_of(host, path)))
    linked = re.search(r"^libseccomp: (\S+)", told, re.MULTILINE)
    if linked and version(linked[1]) != (*libseccomp.version(), FINAL):
        yield from judged("delegate", Installed("libseccomp", linked[1], f"{path} (linked)", None))


def library(host: Host) -> Iterator[Finding]:
    """The libseccomp that our proofs are made with, and that most delegates load."""
    told = ".".join(map(str, libseccomp.version()))
    least, installed = version(LEAST_LIBSECCOMP), version(told)
    assert least and installed
    if installed < least:
        yield Finding(FAIL, "libseccomp.version", told, f"install libseccomp {LEAST_LIBSECCOMP} or newer")
    else:
        yield Finding(OK, "libseccomp.version", told)
    path = loaded(host)
    yield from judged("libseccomp", Installed("libseccomp", told, path, package_of(host, path) if path else None))


def loaded(host: Host) -> str:
    """The file of the libseccomp that this process has loaded."""
    found = re.search(r"(/\S*/libseccomp\.so\S*)$", host.text("/proc/self/maps"), re.MULTILINE)
    return found[1] if found else ""


def judged(room: str, one: Installed) -> Iterator[Finding]:
    """One finding a known flaw."""
    release = version(one.told)
    if release is None:
        todo = f"see whether {one.path} --version says one"
        yield Finding(WARN, f"{room}.advisory", f"unknown: no version in {one.told or 'nothing'!r}", todo, one.path)
        return
    for advisory in TABLE[one.kind]:
        level, found = verdict(advisory, one, release)
        todo = "" if level == OK else NEWER.format(one.kind)
        what = found if level == OK else f"{advisory.what}: {found}"
        yield Finding(level, f"{room}.advisory", what, todo, f"{one.kind} {advisory.name}")


def verdict(advisory: Advisory, one: Installed, release: Version) -> tuple[str, str]:
    """(level, what was found) for one flaw."""
    shown = one.told.removeprefix(one.kind).removeprefix(" version").strip()
    if has_fix(advisory, release):
        return OK, f"{shown} has it not"
    package, fault = one.package, _fault(one.package, release)
    if package is None or fault:
        return FAIL if advisory.grave else WARN, f"{shown} has it, and no package vouches for the file: {fault}"
    said = f"{package.name} {package.version}"
    if advisory.name in package.changelog:
        return OK, f"{shown} had it, {said} mends it"
    missing = "does not name it" if package.changelog else "is not on this host"
    return WARN, f"{shown} had it, whether {said} mends it is unknown (the changelog {missing})"


def _fault(package: Package | None, release: Version) -> str:
    """Why a package's changelog says nothing of the file that is there; '' where it does."""
    if package is None:
        return "none owns it"
    if version(package.version) != release:
        return f"{package.name} {package.version} owns it, which is another version"
    return "" if package.is_whole else f"it is not the one that {package.name} {package.version} brought"


def package_of(host: Host, path: str) -> Package | None:
    """The package that owns a file: dpkg's, read from its files, or rpm's. None where none does."""
    for known in dict.fromkeys((path, host.real(path), path.removeprefix("/usr"))):
        found = _dpkg(host, known, path) or _rpm(host, known, path)
        if found:
            return found
    return None


def _dpkg(host: Host, listed: str, path: str) -> Package | None:
    """`listed`: the file's name in the package's list; `path`: where it is."""
    line = f"\n{listed}\n".encode()
    for name in host.names(f"{DPKG}/info"):
        if name.endswith(".list") and line in b"\n" + host.read(f"{DPKG}/info/{name}"):
            package = name[:-5].partition(":")[0]
            sums = host.text(f"{DPKG}/info/{name[:-5]}.md5sums").splitlines()
            is_whole = f"{host.digest(path, 'md5')}  {listed.lstrip('/')}" in sums
            return Package(package, _dpkg_version(host, package), _changelog(host, package), is_whole)
    return None


def _dpkg_version(host: Host, package: str) -> str:
    status = host.text(f"{DPKG}/status")
    found = re.search(rf"^Package: {re.escape(package)}$(?:\n.+)*?\nVersion: (.+)$", status, re.MULTILINE)
    return found[1].rpartition(":")[2] if found else ""


def _changelog(host: Host, package: str) -> str:
    for name in ("changelog.Debian.gz", "changelog.gz"):
        try:
            return gzip.decompress(host.read(f"/usr/share/doc/{package}/{name}")).decode("utf-8", "replace")
        except (OSError, EOFError):
            continue
    return ""


# By the length of what rpm tells: it does not name the algorithm beside it.
DIGESTS = {32: "md5", 40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}


def _rpm(host: Host, listed: str, path: str) -> Package | None:
    rpm = host.program("rpm")
    if not rpm:
        return None
    try:
        form = "%{NAME} %{VERSION}-%{RELEASE}\n"
        name, release = host.run(rpm, "-qf", "--qf", form, listed).split("\n")[0].split(" ")
        rows = host.run(rpm, "-qf", "--qf", "[%{FILEDIGESTS} %{FILENAMES}\n]", listed).splitlines()
        digests = {row.partition(" ")[0] for row in rows if row.partition(" ")[2] == listed}
        is_whole = any(host.digest(path, DIGESTS[len(one)]) == one for one in digests if len(one) in DIGESTS)
        return Package(name, release, host.run(rpm, "-q", "--changelog", name), is_whole)
    except (OSError, ValueError):
        return None  # no package owns it
