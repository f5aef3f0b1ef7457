"""Types of the cffi module that native/build.py makes from native/sys.c."""

class _Lib:
    def shim_openat2(self, dirfd: int, path: bytes, flags: int, mode: int, resolve: int) -> int: ...
    def shim_pdeathsig(self) -> int: ...

lib: _Lib
