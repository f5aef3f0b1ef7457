/* shim._sys: the system calls that Python 3.11 lacks and our code needs, one thin function each.
 *
 * Belongs here: mechanism. Next door: shim/cold/seccomp/loaded_filter.py, the caller. Each returns a value >= 0, or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.cdef"

/* ptrace(2) as the kernel has it: libc's function hides what PTRACE_PEEK* return. `data` is an address or a number; for
 * PTRACE_SECCOMP_GET_FILTER the caller has asked for the count first and brings room for as many instructions. */
long shim_ptrace(long request, int pid, uintptr_t address, void *data) {
    long result = syscall(SYS_ptrace, request, pid, address, data);
    return result < 0 ? -errno : result;
}
