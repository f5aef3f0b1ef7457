/* Attempts that a filter must stop, each printed as "name errno" (0: it went through), by the registers that the name says.
 * Static, so that a container needs nothing else. x86-64 only: int 0x80 and x32 numbers are among the attempts.
 */
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define HIGH (1UL << 32)

static long raw(long nr, unsigned long a, unsigned long b, unsigned long c)
{
	long result;
	register unsigned long r10 __asm__("r10") = 0;

	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}

static long old_abi(long nr, unsigned long a, unsigned long b)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(a), "c"(b) : "memory");
	return result;
}

static void say(const char *name, long result)
{
	printf("%s %ld\n", name, result < 0 ? -result : 0);
	fflush(stdout);
}

/* In a child, since a wrong ABI is answered by a kill. */
static void say_killed(const char *name, long nr, int compat)
{
	pid_t child = fork();
	int status = 0;

	if (child == 0) {
		static uint32_t args[3] = { AF_PACKET, SOCK_RAW, 0 };
		long result = compat ? old_abi(nr, 1, (unsigned long)(uintptr_t)args) : raw(nr, AF_PACKET, SOCK_RAW, 0);
		_exit(result < 0 ? (int)-result : 0);
	}
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status))
		printf("%s signal %d\n", name, WTERMSIG(status));
	else
		printf("%s %d\n", name, WEXITSTATUS(status));
	fflush(stdout);
}

int main(void)
{
	struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
	char page[256] = { 0 };
	long pid;

	say("socket-unix", raw(SYS_socket, AF_UNIX, SOCK_STREAM, 0));
	say("socket-inet", raw(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	say("socket-netlink-route", raw(SYS_socket, AF_NETLINK, SOCK_RAW, 0));
	say("socket-netlink-audit", raw(SYS_socket, AF_NETLINK, SOCK_RAW, 9));
	say("socket-packet", raw(SYS_socket, AF_PACKET, SOCK_RAW, 0));
	say("socket-alg", raw(SYS_socket, AF_ALG, SOCK_SEQPACKET, 0));
	say("socket-vsock", raw(SYS_socket, AF_VSOCK, SOCK_STREAM, 0));
	say("socket-xdp", raw(SYS_socket, 44, SOCK_RAW, 0));
	say("socket-packet-high-bits", raw(SYS_socket, HIGH | AF_PACKET, SOCK_RAW, 0));
	say("socket-unix-high-bits", raw(SYS_socket, HIGH | AF_UNIX, SOCK_STREAM, 0));
	say("socket-raw", raw(SYS_socket, AF_INET, SOCK_RAW, 1));
	say("io-uring", raw(SYS_io_uring_setup, 4, (unsigned long)(uintptr_t)page, 0));
	pid = raw(SYS_clone3, (unsigned long)(uintptr_t)&args, sizeof(args), 0);
	if (pid == 0)
		_exit(0);
	say("clone3-newuser", pid);
	pid = raw(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0);
	if (pid == 0)
		_exit(0);
	say("clone-newuser", pid);
	say("unshare-newuser", raw(SYS_unshare, CLONE_NEWUSER, 0, 0));
	say("unshare-files", raw(SYS_unshare, CLONE_FILES, 0, 0));
	say("setns", raw(SYS_setns, 0, 0, 0));
	say("mount", raw(SYS_mount, 0, 0, 0));
	say("fsopen", raw(SYS_fsopen, 0, 0, 0));
	say("ptrace-seize", raw(SYS_ptrace, 0x4206, 999999, 0));
	say("bpf", raw(SYS_bpf, 0, 0, 0));
	say("keyctl", raw(SYS_keyctl, 0, (unsigned long)-3, 0));
	say("userfaultfd", raw(SYS_userfaultfd, 0, 0, 0));
	say("perf", raw(SYS_perf_event_open, 0, 0, 0));
	say("open-by-handle", raw(SYS_open_by_handle_at, 0, 0, 0));
	say("tiocsti", raw(SYS_ioctl, 0, TIOCSTI, (unsigned long)(uintptr_t)page));
	say("tiocsti-high-bits", raw(SYS_ioctl, 0, HIGH | TIOCSTI, (unsigned long)(uintptr_t)page));
	say("memfd-exec", raw(SYS_memfd_create, (unsigned long)(uintptr_t)page, 1, 0));
	say("memfd-noexec", raw(SYS_memfd_create, (unsigned long)(uintptr_t)page, 8, 0));
	say("mknod-block", raw(SYS_mknodat, (unsigned long)-100, 0, 060000));
	say("number-4095", raw(4095, 0, 0, 0));
	say_killed("int80-socketcall", 102, 1);
	say_killed("int80-getpid", 20, 1);
	say_killed("x32-socket", 0x40000000 + 41, 0);
	return 0;
}
