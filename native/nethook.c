/* agentshim-net: builds what a plan says in a container's network, before its first instruction, and is gone.
 *
 * Belongs here: replaying netlink messages that are already made, and giving up all authority that this does not need.
 * Next door: hooks/plan.py writes the plan and says what it means. Nothing of a message is understood here but its
 * length, its flags and whether a batch is closed; no policy is decided, no file is written, nothing is forked.
 *
 * The delegate runs `agentshim-net PLAN` as a createRuntime hook in the host's namespaces, as root, with the state of
 * the container on stdin. All of plan and state is checked before anything is done. Functions that can fail return
 * -errno, or end the process with one line, `network: key: asked X, ceiling Y: what to do`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the filter must know this architecture"
#endif

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MAGIC "ASNET\0\0\1"
enum { MOST_BYTES = 1 << 20, MOST_STEPS = 4096, SECONDS = 2 };
enum { CONTAINER, HOST, ROOMS };
enum { ROUTE, NETFILTER, FAMILIES };
static const int FAMILY[] = {NETLINK_ROUTE, NETLINK_NETFILTER};

/* One step as it lies in the file. The bytes of `DO` follow it, then those of `UNDO`, each padded with zeros to 4. */
enum { DO, UNDO };
struct step {
    uint32_t room, family, acks, length[2];
    unsigned char bytes[];
};

static uint32_t plan[MOST_BYTES / 4 + 1]; /* one word more than allowed, to see that a file is too long */
static char state[MOST_BYTES + 1];
static const struct step *steps[MOST_STEPS];
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

static int read_pid(void) {
    ssize_t length = read_all(STDIN_FILENO, state, sizeof state);
    if (length < 0)
        fail("state", reason((int)-length), "the state on stdin, at most 1 MiB", "let runc or crun call it");
    int pid = memchr(state, '\0', (size_t)length) ? -1 : pid_of(state); /* the buffer is zeros behind what was read */
    if (pid < 0)
        fail("state", "something else", "one JSON object with one integer `pid` > 0", "let runc or crun call it");
    return pid;
}

/* How many messages want an answer; -EINVAL unless `bytes` are whole requests, and a batch has its end (the kernel
 * acknowledges each message of one that it then drops for want of an end). */
static int messages(const unsigned char *bytes, size_t length, uint32_t family) {
    struct nlmsghdr head = {0};
    int wanted = 0;
    bool batch = false; /* RTM_NEWLINK has the number of a batch's begin */
    for (size_t at = 0; at < length; at += NLMSG_ALIGN(head.nlmsg_len)) {
        if (length - at < sizeof head)
            return -EINVAL;
        memcpy(&head, bytes + at, sizeof head);
        if (head.nlmsg_len < sizeof head || head.nlmsg_len > length - at || !(head.nlmsg_flags & NLM_F_REQUEST))
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

/* NULL where the step is one that `apply` can do, else what is wrong. */
static const char *check_step(const struct step *step) {
    if (step->room >= ROOMS)
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
    }
    return at == words ? NULL : "bytes behind the last step";
}

static void read_plan(const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
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

/* No descriptor of the engine's, no program that could gain, and of all capabilities three: NET_ADMIN to act, SYS_ADMIN
 * for setns, SYS_PTRACE to look at the namespaces of a process that is not dumpable, as runc's init. */
static void give_up_most(void) {
    syscall(SYS_close_range, 3, ~0U, 0); /* Linux 5.9; before it, the engine's O_CLOEXEC must do */
    need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "capabilities", "no new privileges");
    for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
        continue;
    need(errno == EINVAL, "capabilities", "an empty bounding set"); /* EINVAL: one behind the last */
    keep(CAP_TO_MASK(CAP_NET_ADMIN) | CAP_TO_MASK(CAP_SYS_ADMIN) | CAP_TO_MASK(CAP_SYS_PTRACE));
}

/* From here on: send without an address, receive, write to stderr, end. */
static void give_up_rest(void) {
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define HIGH(i) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[i]) + 4) /* both little-endian */
#define IF(k, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (k), (yes), (no))
    struct sock_filter filter[] = {
        /*  0 */ LOAD(arch),
        /*  1 */ IF(ARCH, 0, 13),
        /*  2 */ LOAD(nr),
        /*  3 */ IF(SYS_recvfrom, 10, 0),
        /*  4 */ IF(SYS_exit_group, 9, 0),
        /*  5 */ IF(SYS_sendto, 0, 4),
        /*  6 */ LOAD(args[4]),
        /*  7 */ IF(0, 0, 7),
        /*  8 */ HIGH(4),
        /*  9 */ IF(0, 4, 5),
        /* 10 */ IF(SYS_write, 0, 4),
        /* 11 */ LOAD(args[0]), /* an int: the kernel does not look at the upper half */
        /* 12 */ IF(STDERR_FILENO, 1, 2),
        /* 13 */ BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        /* 14 */ BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        /* 15 */ BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
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

/* The sockets that the steps of `room` want, in the network namespace of this moment. */
static void open_sockets(uint32_t room) {
    for (uint32_t i = 0; i < plan[2]; i++) {
        int *slot = &sockets[room][steps[i]->family == NETLINK_NETFILTER];
        if (steps[i]->room == room && *slot < 0)
            *slot = open_socket(FAMILY[slot - sockets[room]]);
    }
}

/* The network namespace of `pid`; never the host's. */
static int open_namespace(int pid) {
    char path[32];
    struct stat ours, theirs;
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &theirs) || stat("/proc/self/ns/net", &ours))
        fail("namespace", path, reason(errno), "the container is gone: create it anew");
    if (ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
        fail("namespace", path, "a network namespace that is not the host's", "give the container one of its own");
    return fd;
}

/* Read one answer. 1: it acknowledges; 0: there is none, and `flags` say not to wait; else -errno. */
static int answer(int fd, int flags) {
    char buffer[1024];
    struct sockaddr_nl from = {0};
    socklen_t size = sizeof from;
    struct nlmsghdr head;
    struct nlmsgerr error;
    ssize_t got;
    do
        got = recvfrom(fd, buffer, sizeof buffer, flags | MSG_TRUNC, (struct sockaddr *)&from, &size);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return flags && errno == EAGAIN ? 0 : -errno;
    /* from 0: the kernel's. Whoever is in this namespace already, as root, could send us an answer too. */
    if (size != sizeof from || from.nl_pid != 0)
        return -EBADMSG;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof error) || got > (ssize_t)sizeof buffer)
        return -EBADMSG;
    memcpy(&head, buffer, sizeof head);
    memcpy(&error, buffer + NLMSG_HDRLEN, sizeof error);
    if (head.nlmsg_type != NLMSG_ERROR || head.nlmsg_len != (size_t)got || error.error > 0)
        return -EBADMSG;
    return error.error ? error.error : 1;
}

static int send_all(const struct step *step, int which) {
    int fd = sockets[step->room][step->family == NETLINK_NETFILTER];
    ssize_t sent = sendto(fd, bytes_of(step, which), step->length[which], 0, NULL, 0);
    return sent < 0 ? -errno : (size_t)sent == step->length[which] ? 0 : -EIO;
}

/* 0: done, as every answer says, and there was none too many (the error of a message that wanted none). */
static int apply(const struct step *step) {
    int fd = sockets[step->room][step->family == NETLINK_NETFILTER], got = 1;
    int error = send_all(step, DO);
    for (uint32_t i = 0; !error && got > 0 && i < step->acks; i++)
        got = answer(fd, 0);
    if (!error && got > 0)
        got = answer(fd, MSG_DONTWAIT);
    return error ? error : got > 0 ? -EBADMSG : got;
}

/* Undo what was done before step `failed`, and say so. That step itself is left alone: what it found there, as after
 * EEXIST, is not ours to remove. */
static _Noreturn void give_back(uint32_t failed, int error) {
    static const char *const WHAT[FAMILIES] = {"addresses and links", "nf_tables"};
    const struct step *step = steps[failed];
    char key[32], asked[64], todo[160];
    bool first = step->room == CONTAINER && error == -EEXIST;
    for (uint32_t i = failed; i-- > 0;) {
        first = first && steps[i]->room != CONTAINER;
        if (steps[i]->length[UNDO])
            send_all(steps[i], UNDO);
    }
    snprintf(key, sizeof key, "step %u", failed + 1);
    snprintf(asked, sizeof asked, "%s in the %s network", WHAT[step->family == NETLINK_NETFILTER],
             step->room == HOST ? "host's" : "container's");
    snprintf(todo, sizeof todo, "%s; %s", reason(-error),
             first ? "this network is confined already: release it first, or create a container with a new one"
                   : "what was done before is undone: correct the cause and create the container anew");
    fail(key, asked, "every step acknowledged", todo);
}

int main(int argc, char **argv) {
    if (fcntl(STDERR_FILENO, F_GETFD) < 0)
        _exit(1); /* a socket would take its place, and be written to */
    if (argc != 2 || getauxval(AT_SECURE))
        fail("call", argc != 2 ? "other arguments" : "a set-id file", "agentshim-net PLAN", "let create write it");
    give_up_most();
    int pid = read_pid();
    read_plan(argv[1]);
    int theirs = open_namespace(pid);
    open_sockets(HOST);
    need(setns(theirs, CLONE_NEWNET) == 0, "namespace", "to enter it");
    open_sockets(CONTAINER);
    close(theirs);
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    give_up_rest();
#ifdef PROBE
    PROBE; /* tests: what could still be done from here on */
#endif
    for (uint32_t i = 0; i < plan[2]; i++) {
        int error = apply(steps[i]);
        if (error)
            give_back(i, error);
    }
    _exit(0);
}
