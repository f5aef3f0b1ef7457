"""The value of the seccomp dimension: an OCI profile, its digest, and its meaning, each made when first asked for.

Belongs here: what a container start pays for each time, about 0.1 ms. Next door: `model` (a cache miss only),
`resolve` (a policy's rules against capabilities), `dim.seccomp` (the door).
"""

from __future__ import annotations

import marshal
import posix
from _blake2 import blake2b

from shim.errors import HostError
from shim.seccomp.vocabulary import NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.seccomp.model import Model

FORMAT = b"agentshim-seccomp-1"


class Profile:
    """A filter, or none (TOP). Equal where the meaning is: digests first, else both ways of the order.

    raw: the OCI object, None for TOP; digest: hex, changes with every spelling; model: its meaning; proof: what
    `cold.seccomp.prove` recorded of it, None where nothing did.
    """

    __slots__ = ("_digest", "_make", "_model", "_raw", "proof")

    def __init__(self, raw: dict[str, Any] | None, digest: str = "", make: Callable[[], Any] | None = None) -> None:
        self._raw = raw
        self._digest = digest
        self._make = make
        self._model: Model | None = None
        self.proof: dict[str, Any] | None = None

    @property
    def raw(self) -> dict[str, Any] | None:
        if self._make is not None:
            self._raw, self._make = self._make(), None
        return self._raw

    @property
    def is_top(self) -> bool:
        return self._raw is None and self._make is None

    @property
    def digest(self) -> str:
        if not self._digest:
            self._digest = digest(marshal.dumps(self.raw, 2))  # version 2: no references, so equal values equal bytes
        return self._digest

    @property
    def model(self) -> Model:
        """The meaning; not to be asked of TOP."""
        if self._model is None:
            from shim.seccomp import reading  # 2 ms with what it imports: a cache hit does without

            assert self.raw is not None
            self._model = reading.of(self.raw, machine())
        return self._model

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        if self.is_top or other.is_top or self.digest == other.digest:
            return self.digest == other.digest
        from shim.seccomp import model  # as above

        return model.leq(self.model, other.model) and model.leq(other.model, self.model)

    def __hash__(self) -> int:
        return hash((Profile, self.is_top))  # equal meanings have many spellings: all of them share one hash

    def __repr__(self) -> str:
        return "Profile(TOP)" if self.is_top else f"Profile({self.digest[:12]})"


class Policy(Profile):
    """A policy's profile before its capability-conditional rules are resolved; as a Profile, it is without
    capabilities.

    source: JSON text, as `cold.seccomp.seccomp_source` writes it; caps: mask of the capability bits that it mentions.
    """

    __slots__ = ("caps", "source", "source_digest")

    def __init__(self, source: str, source_digest: str, caps: int) -> None:
        super().__init__(None, digest(source_digest.encode(), b"0"), lambda: self.resolved(0))
        self.source = source
        self.source_digest = source_digest
        self.caps = caps

    def resolved(self, mask: int) -> dict[str, Any]:
        """The OCI object under the capabilities of `mask`."""
        from shim.seccomp import resolve  # a cache hit does without

        return resolve.from_source(self.source, mask)

    def under(self, mask: int) -> Profile:
        """The profile under the capabilities of `mask`; made when its raw form is asked for."""
        mask &= self.caps
        return Profile(None, digest(self.source_digest.encode(), b"%d" % mask), lambda: self.resolved(mask))


def digest(*parts: bytes) -> str:
    """Hex digest of byte strings, each with its length."""
    state = blake2b(FORMAT, digest_size=20)
    for part in parts:
        state.update(b"%d:" % len(part))
        state.update(part)
    return state.hexdigest()


def machine() -> str:
    """uname -m, one whose system calls we know; HostError otherwise."""
    name = posix.uname().machine
    if name not in NATIVE:
        raise HostError("seccomp", "uname -m", name, " or ".join(NATIVE), "run agentshim on such a machine")
    return name
