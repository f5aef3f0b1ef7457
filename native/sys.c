/* shim._sys: the system calls that Python 3.11 lacks and our code needs, one thin function each.
 *
 * Belongs here: mechanism. Next door: shim/kernel.py, the only caller. Each returns a value >= 0, or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.cdef"

/* openat2(2), Linux 5.6: a descriptor opened without crossing what `resolve` forbids. O_CLOEXEC is always set. */
int shim_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    long fd = syscall(SYS_openat2, dirfd, path, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

/* The signal that this process gets when its parent dies, 0 for none: PR_GET_PDEATHSIG of prctl(2). */
int shim_pdeathsig(void) {
    int signal = 0;
    return prctl(PR_GET_PDEATHSIG, &signal) < 0 ? -errno : signal;
}
