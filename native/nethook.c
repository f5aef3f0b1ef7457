/* agentshim-net: builds what a plan says in a container's network, before its first instruction, and is gone.
 * Called again when the container is gone, it takes back what the host's side still has of it.
 *
 * Belongs here: replaying netlink messages that are already made, and giving up all authority that this does not need.
 * Next door: hooks/plan.py writes the plan and says what it means. Nothing of a message is understood here but its
 * length, its flags and whether a batch is closed; no policy is decided, no file is written but one byte of a lease,
 * and nothing is forked but a stand-in that closes sockets.
 *
 * The delegate runs `agentshim-net PLAN` as a createRuntime hook in the host's namespaces, as root, with the state of
 * the container on stdin, and `agentshim-net PLAN undo [LEASE [CLAIM]]` as a poststop hook: LEASE is the file that keeps
 * the container's address from others, CLAIM another link to it, of a container that joined the network of the first.
 * All of plan and state is checked before anything is done. Functions that can fail return -errno, or end the process
 * with one line, `network: key: asked X, ceiling Y: what to do`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the filter must know this architecture"
#endif

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MAGIC "ASNET\0\0\2"
enum { MOST_BYTES = 1 << 20, MOST_STEPS = 4096, SECONDS = 2, NETNS = 8 }; /* by NETNS a message names the namespace */
enum { CONTAINER, HOST, ROOMS, BITS = 0x1f00 };
enum { ONLY_EMPTY = 0x100, KEEP = 0x200, WHOLE = 0x400, REQUIRED = 0x800, ONLY_BUILT = 0x1000 }; /* of BITS */
enum { ROUTE, NETFILTER, FAMILIES };

/* One step as it lies in the file. The bytes of `DO` follow it, then those of `UNDO`, each padded with zeros to 4. */
enum { DO, UNDO };
struct step {
    uint32_t room, family, acks, length[2];
    unsigned char bytes[];
};

static uint32_t plan[MOST_BYTES / 4 + 1]; /* one word more than allowed, to see that a file is too long */
static char state[MOST_BYTES + 1] __attribute__((aligned(4))); /* once it is read, room for other messages */
static const struct step *steps[MOST_STEPS];
static uint32_t rooms; /* of all steps, with their bits */
static int sockets[ROOMS][FAMILIES] = {{-1, -1}, {-1, -1}};

/* Why the kernel said no. podman takes the usual words of the first three for an exit code of the container. */
static const char *reason(int error) {
    switch (error) {
    case ENOENT: return "not there";
    case EACCES: return "not accessible";
    case EPERM: return "not allowed by the kernel";
    case EEXIST: return "it is there already";
    case EAGAIN: return "no answer in 2 seconds";
    case EBADMSG: return "an answer that is none to what was asked";
    default: return strerror(error);
    }
}

/* One line of printable ASCII, in one write: after the filter there is nothing else to write with. */
static _Noreturn void fail(const char *key, const char *asked, const char *ceiling, const char *todo) {
    char text[1024];
    int n = snprintf(text, sizeof text - 1, "network: %s: asked %.400s, ceiling %s: %s", key, asked, ceiling, todo);
    size_t length = n < 0 ? 0 : (size_t)n < sizeof text - 2 ? (size_t)n : sizeof text - 2;
    for (size_t i = 0; i < length; i++)
        if (text[i] < ' ' || text[i] > '~')
            text[i] = '?';
    text[length] = '\n';
    (void)!write(STDERR_FILENO, text, length + 1);
    _exit(1);
}

static void need(bool done, const char *key, const char *asked) {
    if (!done)
        fail(key, asked, reason(errno), "run it as root's hook of runc or crun, on Linux 5.4 or later");
}

/* Fill `buffer`; the length, or -errno, -EFBIG where there is more than that. */
static ssize_t read_all(int fd, void *buffer, size_t size) {
    size_t length = 0;
    while (length < size) {
        ssize_t got = read(fd, (char *)buffer + length, size - length);
        if (got <= 0)
            return got < 0 ? -errno : (ssize_t)length;
        length += (size_t)got;
    }
    return -EFBIG;
}

static const char *blanks(const char *text) {
    return text + strspn(text, " \t\r\n");
}

/* Behind the string that starts at `text`, NULL if none does. Never past the final NUL: an escape takes two bytes only
 * if there are two. */
static const char *string(const char *text) {
    if (*text++ != '"')
        return NULL;
    for (; *text != '"'; text++)
        if ((unsigned char)*text < ' ' || (*text == '\\' && (unsigned char)*++text < ' '))
            return NULL;
    return text + 1;
}

/* Behind the value that starts at `text`, NULL if it is none. Of nested ones brackets and strings are matched, no more:
 * nothing of them is used. `closers` is the stack, one bit for each open bracket. */
static const char *value(const char *text) {
    uint64_t closers = 0;
    unsigned depth = 0;
    do {
        if (*text == '"') {
            if (!(text = string(text)))
                return NULL;
        } else if (*text == '{' || *text == '[') {
            if (++depth == 64)
                return NULL;
            closers = closers << 1 | (*text++ == '{');
        } else if (depth && (*text == '}' || *text == ']')) {
            if ((closers & 1) != (*text++ == '}'))
                return NULL;
            closers >>= 1;
            depth--;
        } else {
            size_t n = strspn(text, depth ? " \t\r\n:,+-.0123456789abcdefghijklmnopqrstuvwxyzE"
                                          : "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
            if (n == 0)
                return NULL;
            text += n;
        }
    } while (depth);
    return text;
}

/* The one `pid` of the one object in `text`; -1 where that is not so. A key with an escape might be another `pid`. */
static int pid_of(const char *text) {
    int pid = 0;
    char before = '{';
    for (text = blanks(text); *text == before; text = blanks(text), before = ',') {
        const char *key = blanks(text + 1), *end = string(key);
        if (!end || memchr(key, '\\', (size_t)(end - key)))
            return -1;
        bool ours = end - key == 5 && memcmp(key, "\"pid\"", 5) == 0;
        text = blanks(end);
        if (*text != ':' || !(end = value(text = blanks(text + 1))))
            return -1;
        size_t digits = strspn(text, "0123456789");
        if (ours && (pid || *text == '0' || digits > 7 || text + digits != end))
            return -1;
        pid = ours ? atoi(text) : pid;
        text = end;
    }
    return *text == '}' && *blanks(text + 1) == '\0' && pid ? pid : -1;
}

/* The end where nothing is to be done: whoever writes the state is not cut off. */
static _Noreturn void leave(void) {
    (void)read_all(STDIN_FILENO, state, sizeof state);
    _exit(0);
}

static int read_pid(void) {
    ssize_t length = read_all(STDIN_FILENO, state, sizeof state);
    if (length < 0)
        fail("state", reason((int)-length), "the state on stdin, at most 1 MiB", "let runc or crun call it");
    int pid = memchr(state, '\0', (size_t)length) ? -1 : pid_of(state); /* the buffer is zeros behind what was read */
    if (pid < 0)
        fail("state", "something else", "one JSON object with one integer `pid` > 0", "let runc or crun call it");
    return pid;
}

/* Copy the head of the message at `at` out. Its length with padding; 0 unless it lies whole within `length`. */
static size_t head_of(const void *bytes, size_t length, size_t at, struct nlmsghdr *head) {
    if (at >= length || length - at < sizeof *head)
        return 0;
    memcpy(head, (const char *)bytes + at, sizeof *head);
    return head->nlmsg_len < sizeof *head || head->nlmsg_len > length - at ? 0 : NLMSG_ALIGN(head->nlmsg_len);
}

/* How many messages want an answer; -EINVAL unless `bytes` are whole requests, and a batch has its end (the kernel
 * acknowledges each message of one that it then drops for want of an end). */
static int messages(const unsigned char *bytes, size_t length, uint32_t family) {
    struct nlmsghdr head = {0};
    int wanted = 0;
    bool batch = false; /* RTM_NEWLINK has the number of a batch's begin */
    for (size_t at = 0, size; at < length; at += size) {
        if (!(size = head_of(bytes, length, at, &head)) || !(head.nlmsg_flags & NLM_F_REQUEST))
            return -EINVAL; /* what is no request is acknowledged, and not done */
        batch = batch || (at == 0 && family == NETLINK_NETFILTER && head.nlmsg_type == NFNL_MSG_BATCH_BEGIN);
        wanted += (head.nlmsg_flags & NLM_F_ACK) != 0;
    }
    return batch && head.nlmsg_type != NFNL_MSG_BATCH_END ? -EINVAL : wanted;
}

/* Move *at, counted in words, behind `length` bytes and their padding; false where they end too soon. */
static bool skip(size_t words, size_t *at, uint32_t length) {
    if (length > (words - *at) * 4)
        return false;
    const unsigned char *bytes = (const unsigned char *)(plan + *at);
    *at += (length + 3) / 4;
    for (size_t i = length; i % 4; i++)
        if (bytes[i])
            return false;
    return true;
}

static const unsigned char *bytes_of(const struct step *step, int which) {
    return step->bytes + (which == UNDO ? (step->length[DO] + 3) / 4 * 4 : 0);
}

static uint32_t room_of(const struct step *step) {
    return step->room & ~(uint32_t)BITS;
}

/* Where the socket for a step's room and family is. */
static int *slot(const struct step *step) {
    return &sockets[room_of(step)][step->family == NETLINK_NETFILTER];
}

/* NULL where the step is one that `apply` can do, else what is wrong. */
static const char *check_step(const struct step *step) {
    if (room_of(step) >= ROOMS || (step->room & ONLY_EMPTY && step->room & ONLY_BUILT))
        return "an unknown room";
    if (step->family != NETLINK_ROUTE && step->family != NETLINK_NETFILTER)
        return "an unknown family";
    int wanted = messages(bytes_of(step, DO), step->length[DO], step->family);
    if (wanted < 0 || messages(bytes_of(step, UNDO), step->length[UNDO], step->family) < 0)
        return "messages that are not whole requests";
    return wanted == 0 || step->acks != (uint32_t)wanted ? "another number of answers than its messages want" : NULL;
}

/* Fill `steps` from the `length` bytes of `plan`. NULL where it is whole, else what is wrong. */
static const char *check_plan(size_t length) {
    size_t words = length / 4, at = 3;
    if (length % 4 || words < at || memcmp(plan, MAGIC, 8) != 0)
        return "no plan of this version";
    if (plan[2] == 0 || plan[2] > MOST_STEPS)
        return "no step, or too many";
    for (uint32_t i = 0; i < plan[2]; i++) {
        const struct step *step = steps[i] = (const void *)(plan + at);
        if (words - at < sizeof *step / 4)
            return "a step that is cut off";
        at += sizeof *step / 4;
        if (!skip(words, &at, step->length[DO]) || !skip(words, &at, step->length[UNDO]))
            return "a step that is cut off, or padded with something";
        const char *wrong = check_step(step);
        if (wrong)
            return wrong;
        rooms |= step->room;
    }
    return at == words ? NULL : "bytes behind the last step";
}

/* With `over`, a plan that is not there has nothing to undo. */
static void read_plan(const char *path, bool over) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == ENOENT && over)
        leave();
    if (fd < 0)
        fail("plan", path, reason(errno), "create the container anew");
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != 0 || st.st_mode & (S_IWGRP | S_IWOTH))
        fail("plan", path, "a regular file of root's that only root can write", "create the container anew");
    ssize_t length = read_all(fd, plan, sizeof plan);
    close(fd);
    const char *wrong = length < 0 ? reason((int)-length) : check_plan((size_t)length);
    if (wrong)
        fail("plan", wrong, "one whole plan of at most 1 MiB", "install all of agentshim at one version");
}

static void keep(uint32_t mask) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{mask, mask, 0}}; /* nothing inheritable: so nothing ambient either */
    need(syscall(SYS_capset, &head, data) == 0, "capabilities", "fewer capabilities");
}

/* No descriptor of the engine's, no program that could gain, and of all capabilities NET_ADMIN, to act; unless the
 * container is `over` SYS_ADMIN too, for setns, and SYS_PTRACE, to look at the namespaces of a process that is not
 * dumpable, as runc's init. */
static void give_up_most(bool over) {
    syscall(SYS_close_range, 3, ~0U, 0); /* Linux 5.9; before it, the engine's O_CLOEXEC must do */
    need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "capabilities", "no new privileges");
    for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
        continue;
    need(errno == EINVAL, "capabilities", "an empty bounding set"); /* EINVAL: one behind the last */
    keep(CAP_TO_MASK(CAP_NET_ADMIN) | (over ? 0 : CAP_TO_MASK(CAP_SYS_ADMIN) | CAP_TO_MASK(CAP_SYS_PTRACE)));
}

/* From here on: send without an address, receive, write to stderr, end; and unlink `lease`, unless that is NULL. */
static void give_up_rest(const char *lease) {
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define HIGH(i) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[i]) + 4) /* both little-endian */
#define IF(k, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (k), (yes), (no))
    struct sock_filter filter[] = {
        /*  0 */ LOAD(arch),
        /*  1 */ IF(ARCH, 0, 20),
        /*  2 */ LOAD(nr),
        /*  3 */ IF(SYS_recvfrom, 19, 0),
        /*  4 */ IF(SYS_exit_group, 18, 0),
        /*  5 */ IF(SYS_sendto, 0, 4),
        /*  6 */ LOAD(args[4]),
        /*  7 */ IF(0, 0, 14),
        /*  8 */ HIGH(4),
        /*  9 */ IF(0, 13, 12),
        /* 10 */ IF(SYS_write, 0, 2),
        /* 11 */ LOAD(args[0]), /* an int: the kernel does not look at the upper half */
        /* 12 */ IF(STDERR_FILENO, 10, 9),
        /* 13 */ IF(lease ? SYS_unlinkat : SYS_exit_group, 0, 8), /* without a lease never so: see 4 */
        /* 14 */ LOAD(args[0]),
        /* 15 */ IF((uint32_t)AT_FDCWD, 0, 6),
        /* 16 */ LOAD(args[1]),
        /* 17 */ IF((uint32_t)(uintptr_t)lease, 0, 4),
        /* 18 */ HIGH(1),
        /* 19 */ IF((uint32_t)((uint64_t)(uintptr_t)lease >> 32), 0, 2),
        /* 20 */ LOAD(args[2]), /* an int, too */
        /* 21 */ IF(0, 1, 0),
        /* 22 */ BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        /* 23 */ BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(filter), filter};
    keep(CAP_TO_MASK(CAP_NET_ADMIN));
    need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0, "seccomp", "a filter");
}

static int open_socket(int family) {
    const int one = 1, size = MOST_BYTES; /* the kernel doubles it: one step is one datagram, and each ack takes 768 */
    const struct timeval limit = {SECONDS, 0};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
    need(fd >= 0, "socket", "netlink");
    need(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0, "socket", "a time limit");
    need(setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one) == 0, "socket", "short answers");
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size); /* refused in a user namespace before 5.16: */
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size); /* 200 KiB then, enough for most plans */
    return fd;
}

/* The sockets that the steps of `room` want, in the network namespace of this moment; and one to look around with. */
static void open_sockets(uint32_t room) {
    for (uint32_t i = 0; i < plan[2]; i++)
        if (room_of(steps[i]) == room && *slot(steps[i]) < 0)
            *slot(steps[i]) = open_socket((int)steps[i]->family);
    if (room == CONTAINER && rooms & (ONLY_EMPTY | ONLY_BUILT) && sockets[CONTAINER][ROUTE] < 0)
        sockets[CONTAINER][ROUTE] = open_socket(NETLINK_ROUTE);
}

/* Open the network namespace of `pid`, never the host's, as NETNS. */
static void open_namespace(int pid) {
    char path[32];
    struct stat ours, theirs;
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &theirs) || stat("/proc/self/ns/net", &ours))
        fail("namespace", path, reason(errno), "the container is gone: create it anew");
    if (ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
        fail("namespace", path, "a network namespace that is not the host's", "give the container one of its own");
    if (fd != NETNS) {
        need(dup3(fd, NETNS, O_CLOEXEC) == NETNS, "namespace", "a descriptor");
        close(fd);
    }
}

/* One datagram of the kernel's: its length, or -errno. */
static ssize_t receive(int fd, void *buffer, size_t size, int flags) {
    struct sockaddr_nl from = {0};
    socklen_t length = sizeof from;
    ssize_t got;
    do
        got = recvfrom(fd, buffer, size, flags | MSG_TRUNC, (struct sockaddr *)&from, &length);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    /* from 0: the kernel's. Whoever is in this namespace already, as root, could send us an answer too. */
    return length != sizeof from || from.nl_pid != 0 || got > (ssize_t)size ? -EBADMSG : got;
}

/* Read one answer. 1: it acknowledges; 0: there is none, and `flags` say not to wait; else -errno. */
static int answer(int fd, int flags) {
    char buffer[1024];
    struct nlmsghdr head;
    struct nlmsgerr error;
    ssize_t got = receive(fd, buffer, sizeof buffer, flags);
    if (got < 0)
        return flags && got == -EAGAIN ? 0 : (int)got;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof error))
        return -EBADMSG;
    memcpy(&head, buffer, sizeof head);
    memcpy(&error, buffer + NLMSG_HDRLEN, sizeof error);
    if (head.nlmsg_type != NLMSG_ERROR || head.nlmsg_len != (size_t)got || error.error > 0)
        return -EBADMSG;
    return error.error ? error.error : 1;
}

static int send_all(int fd, const void *bytes, size_t length) {
    ssize_t sent = sendto(fd, bytes, length, 0, NULL, 0);
    return sent < 0 ? -errno : (size_t)sent == length ? 0 : -EIO;
}

/* 1: no interface of the container's network is up but lo, which is 1; 0: one is; else -errno. */
static int is_empty(void) {
    static const struct { struct nlmsghdr head; struct ifinfomsg info; } ASK = {
        {sizeof ASK, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 0, 0}, {0}};
    int fd = sockets[CONTAINER][ROUTE], empty = 1, error = send_all(fd, &ASK, sizeof ASK);
    while (!error) {
        struct nlmsghdr head;
        struct ifinfomsg info;
        ssize_t got = receive(fd, state, sizeof state - sizeof info, 0);
        if (got <= 0)
            return got ? (int)got : -EBADMSG;
        for (size_t at = 0, size; at < (size_t)got; at += size) {
            if (!(size = head_of(state, (size_t)got, at, &head)) || head.nlmsg_flags & NLM_F_DUMP_INTR)
                return -EBADMSG;
            memcpy(&info, state + at + NLMSG_HDRLEN, sizeof info); /* room for it is left behind what may come */
            if (head.nlmsg_type == NLMSG_DONE && head.nlmsg_len >= NLMSG_LENGTH(sizeof error)) {
                memcpy(&error, &info, sizeof error); /* of the listing itself */
                return error < 0 ? error : empty;
            }
            if (head.nlmsg_type != RTM_NEWLINK || head.nlmsg_len < NLMSG_LENGTH(sizeof info))
                return -EBADMSG;
            empty = empty && (info.ifi_index == 1 || !(info.ifi_flags & IFF_UP));
        }
    }
    return error;
}

/* 0: done, as every answer says, and there was none too many (the error of a message that wanted none). */
static int apply(const struct step *step) {
    int fd = *slot(step), got = 1, error = send_all(fd, bytes_of(step, DO), step->length[DO]);
    for (uint32_t i = 0; !error && got > 0 && i < step->acks; i++)
        got = answer(fd, 0);
    if (!error && got > 0)
        got = answer(fd, MSG_DONTWAIT);
    return error ? error : got > 0 ? -EBADMSG : got;
}

static _Noreturn void fail_step(uint32_t place, int error, const char *ceiling, const char *more) {
    static const char *const WHAT[FAMILIES] = {"addresses and links", "nf_tables"};
    const struct step *step = steps[place];
    char key[32], asked[64], todo[160];
    snprintf(key, sizeof key, "step %u", place + 1);
    snprintf(asked, sizeof asked, "%s in the %s network", WHAT[step->family == NETLINK_NETFILTER],
             room_of(step) == HOST ? "host's" : "container's");
    snprintf(todo, sizeof todo, "%s; %s", reason(-error), more);
    fail(key, asked, ceiling, todo);
}

/* Undo what was done before step `failed`, and say so. That step itself is left alone: what it found there, as after
 * EEXIST, is not ours to remove. */
static _Noreturn void give_back(uint32_t failed, int error) {
    bool first = room_of(steps[failed]) == CONTAINER && error == -EEXIST;
    for (uint32_t i = failed; i-- > 0;) {
        first = first && (!steps[i] || room_of(steps[i]) != CONTAINER);
        if (steps[i] && steps[i]->length[UNDO])
            send_all(*slot(steps[i]), bytes_of(steps[i], UNDO), steps[i]->length[UNDO]);
    }
    fail_step(failed, error, "every step acknowledged",
              first ? "this network is confined already: release it first, or create a container with a new one"
                    : "what was done before is undone: correct the cause and create the container anew");
}

/* Send, and hear all that the kernel says at once. 0: done; -ENOENT: something of it was gone; else the error. */
static int settle(int fd, const void *bytes, size_t length) {
    int error = send_all(fd, bytes, length);
    for (int got; (got = answer(fd, MSG_DONTWAIT));)
        if (got < 0 && (!error || error == -ENOENT))
            error = got == -ENODEV ? -ENOENT : got;
    return error;
}

/* Undo a step at the container's end; 0 where nothing of it is left. Of a batch nothing is done where one thing is gone
 * already: then each of its messages gets a batch of its own, unless one of its elements tells whose the others are. */
static int take_back(const struct step *step) {
    static const struct { struct nlmsghdr head; struct nfgenmsg body; } END = {
        {sizeof END, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, 0}, {0, 0, 0}};
    const unsigned char *bytes = bytes_of(step, UNDO);
    const size_t length = step->length[UNDO];
    struct nlmsghdr head;
    size_t begin = head_of(bytes, length, 0, &head);
    int fd = *slot(step), error = settle(fd, bytes, length);
    if (error != -ENOENT || step->room & WHOLE || step->family != NETLINK_NETFILTER ||
        head.nlmsg_type != NFNL_MSG_BATCH_BEGIN)
        return error == -ENOENT ? 0 : error;
    memcpy(state, bytes, begin);
    error = 0;
    for (size_t at = begin, size; (size = head_of(bytes, length, at, &head)); at += size) {
        if (head.nlmsg_type == NFNL_MSG_BATCH_END)
            break;
        memcpy(state + begin, bytes + at, size);
        memcpy(state + begin + size, &END, sizeof END);
        int got = settle(fd, state, begin + size + sizeof END);
        error = got && got != -ENOENT ? got : error;
    }
    return error;
}

/* Undo the steps of the host's side, the last first, then let the address go. */
static _Noreturn void release(const char *lease) {
    uint32_t failed = 0;
    int error = 0;
    for (uint32_t i = plan[2]; i-- > 0;) {
        bool ours = room_of(steps[i]) == HOST && !(steps[i]->room & KEEP) && steps[i]->length[UNDO];
        int got = ours ? take_back(steps[i]) : 0;
        failed = got && !error ? i : failed;
        error = error ? error : got;
    }
    if (error)
        fail_step(failed, error, "all of it undone", "take it back by hand: agentshim net gc");
    if (lease && unlinkat(AT_FDCWD, lease, 0) && errno != ENOENT)
        fail("lease", lease, reason(errno), "take it back by hand: agentshim net gc");
    _exit(0);
}

/* Whether two paths end in the same name, whatever is behind its first dot. */
static bool is_namesake(const char *one, const char *other) {
    const char *a = strrchr(one, '/'), *b = strrchr(other, '/');
    a = a ? a + 1 : one;
    b = b ? b + 1 : other;
    size_t length = strcspn(a, ". \n");
    return length && length == strcspn(b, ". \n") && memcmp(a, b, length) == 0;
}

/* Hold the lease until the end: whoever takes back or lets go of one, or joins, locks it before. Its path, in memory that
 * cannot be written any more, for the filter. Nothing is left to do where it is gone, or names another container's plan;
 * nor while somebody else lives in the network: then only our part in it ends, which for the owner is a mark. */
static const char *hold(const char *lease, const char *claim, const char *path) {
    char text[4096] = "", *copy = mmap(NULL, sizeof text, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct stat st, now = {0};
    int fd = open(claim ? claim : lease, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == ENOENT)
        leave();
    if (fd < 0 || flock(fd, LOCK_EX) || fstat(fd, &st) || read(fd, text, sizeof text - 1) < 0 ||
        (stat(lease, &now) && errno != ENOENT))
        fail("lease", lease, reason(errno), "take it back by hand: agentshim net gc");
    if (now.st_ino != st.st_ino || !(claim || is_namesake(text, path)))
        leave();
    bool last = st.st_nlink == (claim ? 2 : 1);
    int mark = claim || last ? -1 : open(lease, O_WRONLY | O_CLOEXEC);
    /* With the last claim the plan of all who joined goes: the owner has its own. */
    if ((claim ? unlink(claim) : !last && pwrite(mark, "-", 1, 0) != 1) || (claim && last && unlink(path)))
        errno == ENOENT ? leave() : fail("lease", lease, reason(errno), "take it back by hand: agentshim net gc");
    if (!last || (claim && *text != '-'))
        leave();
    need(copy != MAP_FAILED && strlen(lease) < sizeof text, "lease", "memory for its path");
    need(mprotect(strcpy(copy, lease), sizeof text, PROT_READ) == 0, "lease", "memory that stays as it is");
    return copy;
}

static int until_our_end(void *pipe) {
    const int *ends = pipe;
    char byte;
    close(STDIN_FILENO);
    close(STDERR_FILENO);
    close(ends[1]);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0)
        (void)!read(ends[0], &byte, 1);
    return (int)syscall(SYS_exit, 0);
}

/* A netfilter socket that has deleted elements waits, where it is closed last, until no packet can see them (6 ms), and
 * the delegate waits for our end. So a child, in our memory, keeps the sockets until then, and may only read. */
static void stand_in(void) {
    static char stack[1 << 14] __attribute__((aligned(16)));
    static int ends[2];
    if (pipe2(ends, O_CLOEXEC) == 0 && clone(until_our_end, stack + sizeof stack, CLONE_VM | SIGCHLD, ends) > 0)
        close(ends[0]); /* without a child we end later, no more */
}

int main(int argc, char **argv) {
    if (fcntl(STDERR_FILENO, F_GETFD) < 0 || (fcntl(STDIN_FILENO, F_GETFD) < 0 && open("/dev/null", O_RDONLY)))
        _exit(1); /* a socket would take its place, and be written to, or read */
    bool over = argc > 2 && argc < 6 && strcmp(argv[2], "undo") == 0, fine = argc == 2 || over;
    if (!fine || getauxval(AT_SECURE))
        fail("call", fine ? "a set-id file" : "other arguments", "PLAN [undo [LEASE [CLAIM]]]", "let create write it");
    give_up_most(over);
    close(STDOUT_FILENO);
    read_plan(argv[1], over);
    open_sockets(HOST);
    const char *lease = NULL;
    if (over) {
        stand_in();
        (void)read_all(STDIN_FILENO, state, sizeof state); /* before any lock: whoever writes it may be slow */
        lease = argc > 3 ? hold(argv[3], argv[4], argv[1]) : NULL;
    } else {
        open_namespace(read_pid()); /* last: runc begins to write the state when we begin */
        need(setns(NETNS, CLONE_NEWNET) == 0, "namespace", "to enter it");
        open_sockets(CONTAINER);
    }
    close(STDIN_FILENO);
    give_up_rest(lease);
#ifdef PROBE
    PROBE; /* tests: what could still be done from here on */
#endif
    if (over)
        release(lease);
    int empty = rooms & (ONLY_EMPTY | ONLY_BUILT) ? is_empty() : 1;
    if (empty < 0)
        fail("interfaces", reason(-empty), "the list of those in the container's network", "create the container anew");
    if (!empty && rooms & REQUIRED)
        fail("mode", "a network that an engine has made", "an empty one", "start it with --network none, or set mode = auto");
    for (uint32_t i = 0; i < plan[2]; i++) {
        if (steps[i]->room & (empty ? ONLY_BUILT : ONLY_EMPTY))
            steps[i] = NULL; /* an engine made a network there, or it made none: neither done nor undone */
        int error = steps[i] ? apply(steps[i]) : 0;
        if (error)
            give_back(i, error);
    }
    _exit(0);
}
