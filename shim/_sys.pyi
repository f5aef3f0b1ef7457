"""Types of the cffi module that native/build.py makes from native/sys.c."""

from typing import Any

class _Lib:
    def shim_ptrace(self, request: int, pid: int, address: int, data: object) -> int: ...

class _Ffi:
    NULL: Any
    def new(self, kind: str) -> Any: ...
    def buffer(self, data: object) -> Any: ...

lib: _Lib
ffi: _Ffi
