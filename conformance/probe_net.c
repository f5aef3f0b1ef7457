/* Tries what a workload may try with its network, from inside, and says what came of it.
 *
 * Each word asks for one thing, "kind,address,port", as `probe_net.py` writes it; for each, one line: the word, an
 * outcome and milliseconds. The outcome is OPEN where an answer came, SILENCE where none did in time, else the errno
 * (by number) of the first call that failed. Static, and no name is looked up but in /etc/hosts: it runs in any image.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/if_packet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

enum { TIMEOUT = 1500 }; /* ms */
enum { OPEN = 0, SILENCE = -1, OTHER = -2 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

/* A numeric address; false where it is none. */
static bool numeric(const char *text, int port, union address *out, socklen_t *length) {
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &out->four.sin_addr) == 1) {
        out->four.sin_family = AF_INET, out->four.sin_port = htons(port), *length = sizeof out->four;
        return true;
    }
    if (inet_pton(AF_INET6, text, &out->six.sin6_addr) != 1)
        return false;
    out->six.sin6_family = AF_INET6, out->six.sin6_port = htons(port), *length = sizeof out->six;
    if (IN6_IS_ADDR_LINKLOCAL(&out->six.sin6_addr))
        out->six.sin6_scope_id = 1000; /* eth0 of ours */
    return true;
}

/* An address, or a name by /etc/hosts alone, as who has no DNS looks it up. */
static bool found(const char *text, int port, union address *out, socklen_t *length) {
    char line[512];
    bool hit = false;
    if (numeric(text, port, out, length))
        return true;
    FILE *hosts = fopen("/etc/hosts", "re");
    while (hosts && !hit && fgets(line, sizeof line, hosts)) {
        char *rest = line, *here = strsep(&rest, " \t\n");
        for (char *name; !hit && (name = strsep(&rest, " \t\n"));)
            hit = !strcmp(name, text) && numeric(here, port, out, length);
    }
    if (hosts)
        fclose(hosts);
    return hit;
}

/* What came of waiting for an answer. */
static int answered(int fd, int ms) {
    char data[2048];
    struct pollfd one = {.fd = fd, .events = POLLIN};
    if (poll(&one, 1, ms) == 0)
        return SILENCE;
    ssize_t got = recv(fd, data, sizeof data, 0);
    return got < 0 ? errno : got == 0 ? OTHER : OPEN;
}

static int pending(int fd) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static int stream(int fd, const void *data, size_t size) {
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    if (poll(&one, 1, TIMEOUT) == 0)
        return SILENCE;
    int error = pending(fd);
    if (error)
        return error;
    return send(fd, data, size, MSG_NOSIGNAL) < 0 ? errno : answered(fd, TIMEOUT);
}

/* A question for the address of example.com; two bytes of length before it where it goes by TCP. */
static const char QUESTION[] = "\0\035\022\064\001\0\0\001\0\0\0\0\0\0\007example\003com\0\0\001\0\001";

static int exchange(const char *kind, const char *to, int port) {
    union address far;
    socklen_t length;
    if (!found(to, port, &far, &length))
        return OTHER;
    bool icmp = !strcmp(kind, "icmp"), tcp = !strcmp(kind, "tcp") || !strcmp(kind, "dns-tcp");
    int family = far.any.sa_family;
    int fd = socket(family, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC,
                    icmp ? (family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6) : 0);
    if (fd < 0)
        return errno;
    int result;
    if (connect(fd, &far.any, length) && errno != EINPROGRESS)
        result = errno;
    else if (tcp)
        result = *kind == 'd' ? stream(fd, QUESTION, sizeof QUESTION - 1) : stream(fd, "hi\n", 3);
    else {
        char echo[16] = {family == AF_INET ? 8 : (char)128};
        bool dns = *kind == 'd';
        const void *data = icmp ? echo : dns ? QUESTION + 2 : "hi\n";
        size_t size = icmp ? sizeof echo : dns ? sizeof QUESTION - 3 : 3;
        result = send(fd, data, size, 0) < 0 ? errno : answered(fd, TIMEOUT);
    }
    close(fd);
    return result;
}

/* A datagram in another's name, without a right: the socket is bound to an address that is not there. */
static int spoof(const char *to, int port) {
    union address far, near = {.four = {.sin_family = AF_INET}};
    socklen_t length;
    int on = 1, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, "203.0.113.77", &near.four.sin_addr);
    if (fd < 0 || !numeric(to, port, &far, &length) || setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on) ||
        bind(fd, &near.any, sizeof near.four))
        return errno;
    int result = sendto(fd, "hi\n", 3, 0, &far.any, length) < 0 ? errno : answered(fd, TIMEOUT);
    close(fd);
    return result;
}

/* A datagram to each of the first ports of an address: what became of the last one. */
static int fill(const char *to, int count) {
    union address far;
    socklen_t length;
    int result = OPEN, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || !numeric(to, 0, &far, &length))
        return errno;
    for (int port = 1; port <= count; port++) {
        far.four.sin_port = htons(port);
        result = sendto(fd, "hi\n", 3, 0, &far.any, length) < 0 ? errno : OPEN;
    }
    close(fd);
    return result;
}

static int opened(int family, int type, int protocol) {
    int fd = socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return errno;
    close(fd);
    return OPEN;
}

/* Whoever is sent something at a UDP port within a second: OPEN. */
static int hear(int port) {
    union address here = {.four = {.sin_family = AF_INET, .sin_port = htons(port)}};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, &here.any, sizeof here.four))
        return errno;
    puts("listening");
    fflush(stdout);
    int result = answered(fd, 1000);
    close(fd);
    return result;
}

/* The kernel's answer to netlink messages that each want one: the first error. */
static int netlink(int family, const void *data, size_t size) {
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    char got[4096];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
    if (fd < 0)
        return errno;
    int result = sendto(fd, data, size, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0 ? errno : OPEN;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    if (!result && poll(&one, 1, TIMEOUT) != 1)
        result = SILENCE;
    ssize_t length = result ? 0 : recv(fd, got, sizeof got, 0);
    for (struct nlmsghdr *head = (struct nlmsghdr *)got; !result && NLMSG_OK(head, length); head = NLMSG_NEXT(head, length))
        if (head->nlmsg_type == NLMSG_ERROR)
            result = -((struct nlmsgerr *)NLMSG_DATA(head))->error;
    close(fd);
    return result;
}

/* The end of `table inet agentshim`, in one batch. */
static int unlock(void) {
    struct {
        struct nlmsghdr begin;
        struct nfgenmsg begins;
        struct nlmsghdr head;
        struct nfgenmsg body;
        struct nlattr name;
        char table[12];
        struct nlmsghdr end;
        struct nfgenmsg ends;
    } all = {
        {NLMSG_LENGTH(sizeof(struct nfgenmsg)), NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, 0},
        {AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)},
        {sizeof all.head + sizeof all.body + sizeof all.name + sizeof all.table,
         NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, 1, 0},
        {1 /* NFPROTO_INET */, NFNETLINK_V0, 0},
        {sizeof all.name + 10, NFTA_TABLE_NAME},
        "agentshim",
        {NLMSG_LENGTH(sizeof(struct nfgenmsg)), NFNL_MSG_BATCH_END, NLM_F_REQUEST, 2, 0},
        {AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)},
    };
    return netlink(NETLINK_NETFILTER, &all, sizeof all);
}

/* An address more for lo, which nothing needs. */
static int address(void) {
    struct {
        struct nlmsghdr head;
        struct ifaddrmsg body;
        struct rtattr local;
        struct in_addr value;
    } all = {
        {sizeof all, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0},
        {AF_INET, 32, 0, RT_SCOPE_HOST, 1},
        {RTA_LENGTH(sizeof all.value), IFA_LOCAL},
        {htonl(0x7f0c0c0c)},
    };
    return netlink(NETLINK_ROUTE, &all, sizeof all);
}

static void wrote(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* Every capability in a user namespace of one's own; 255 where that is not to be had. */
static int nested(int (*then)(void)) {
    int status;
    char map[32];
    snprintf(map, sizeof map, "0 %d 1\n", geteuid());
    pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWUSER))
            _exit(255);
        wrote("/proc/self/setgroups", "deny");
        wrote("/proc/self/uid_map", map);
        int result = then();
        _exit(result < 0 ? 254 : result);
    }
    waitpid(child, &status, 0);
    status = WIFEXITED(status) ? WEXITSTATUS(status) : 253;
    return status == 254 ? OTHER : status;
}

static int raw(void) { return opened(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int packet(void) { return opened(AF_PACKET, SOCK_RAW, htons(3)); }
static int nothing(void) { return OPEN; }

static char there[64];

/* The same peer from a network namespace of one's own. */
static int elsewhere(void) {
    char *rest = there, *to = strsep(&rest, ",");
    return unshare(CLONE_NEWNET) ? errno : exchange("tcp", to, atoi(rest));
}

static int tried(const char *kind, const char *to, int port) {
    static const struct {
        const char *name;
        int (*go)(void);
    } bare[] = {{"raw", raw}, {"packet", packet}, {"unlock", unlock}, {"address", address}, {"userns", nothing}};
    bool within = !strncmp(kind, "userns-", 7);
    for (size_t i = 0; i < sizeof bare / sizeof *bare; i++)
        if (!strcmp(kind + 7 * within, bare[i].name))
            return within || bare[i].go == nothing ? nested(bare[i].go) : bare[i].go();
    if (!strcmp(kind, "userns-netns")) {
        snprintf(there, sizeof there, "%s,%d", to, port);
        return nested(elsewhere);
    }
    if (!strcmp(kind, "spoof"))
        return spoof(to, port);
    if (!strcmp(kind, "fill"))
        return fill(to, port);
    if (!strcmp(kind, "hear"))
        return hear(port);
    return exchange(kind, to, port);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char word[128], *rest = word;
        snprintf(word, sizeof word, "%s", argv[i]);
        char *kind = strsep(&rest, ","), *to = strsep(&rest, ",");
        double begun = now();
        int result = tried(kind, to ? to : "", rest ? atoi(rest) : 0);
        printf("%s %d %.2f\n", argv[i], result, now() - begun);
        fflush(stdout);
    }
    return 0;
}
