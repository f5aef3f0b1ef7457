/* What a network costs who uses it. `traffic serve PORT` is the far end: it prints "ready" and listens until it is
   killed. `traffic MODE ADDRESS PORT AMOUNT` prints nanoseconds:

       push    of sending AMOUNT MiB by TCP, until the far end has read all     fetch   of reading as much: the quickest
               of eight, since two CPUs that copy as fast as they can are slower whenever anything else runs
       link    as push, at the rate of a link of 10 Gbit/s (SO_MAX_PACING_RATE)
       tcp, udp   a round trip of one byte, AMOUNT of them in twenty turns, that of the quickest turn: what
                  another program takes of this CPU is not ours
       hole    a datagram to a socket that nobody reads, counted in the same way. veth and bridge do their work on the
               sender's CPU, so this is what a packet costs in all; of a socket that is read, most is waking up. Each
               BURST of them is followed by one round trip, so that none is left behind, or dropped from a queue

   The near end runs on the first CPU that it may, the far end on the last one. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PUSH, FETCH, TCP, UDP, HOLE, LINK, MODES, TURNS = 20, CHUNK = 128 << 10, STREAMS = 8, SECONDS = 5, BURST = 500 };

static const char *const NAMES[MODES] = { "push", "fetch", "tcp", "udp", "hole", "link" };
static char buffer[CHUNK];

static void need(bool done, const char *what)
{
	if (done)
		return;
	perror(what);
	exit(1);
}

static void pin(bool last)
{
	cpu_set_t all, one;
	size_t cpu = last ? CPU_SETSIZE - 1 : 0;

	need(sched_getaffinity(0, sizeof all, &all) == 0, "sched_getaffinity");
	while (!CPU_ISSET(cpu, &all))
		cpu = last ? cpu - 1 : cpu + 1;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	need(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int opened(int mode, const char *address, int port, bool far)
{
	const int one = 1, kind = mode == UDP || mode == HOLE ? SOCK_DGRAM : SOCK_STREAM;
	const struct timeval limit = { SECONDS, 0 };
	const unsigned long rate = 10000000000 / 8; /* bytes a second */
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((unsigned short)(port + 2 * mode)) };
	int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);

	need(fd >= 0 && inet_pton(AF_INET, address, &at.sin_addr) == 1, address);
	if (!far) {
		need(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0, "SO_RCVTIMEO");
		need(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0, "SO_SNDTIMEO");
		need(mode != LINK || setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate) == 0, "pacing");
		need(connect(fd, (struct sockaddr *)&at, sizeof at) == 0, "connect");
		if (kind == SOCK_STREAM)
			need(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
		return fd;
	}
	need(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0, "SO_REUSEADDR");
	need(bind(fd, (struct sockaddr *)&at, sizeof at) == 0, "bind");
	need(kind == SOCK_DGRAM || listen(fd, 8) == 0, "listen");
	return fd;
}

/* One caller of a stream, until it goes. */
static void attend(int mode, int fd)
{
	const int one = 1;
	ssize_t got;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (mode == FETCH)
		while (send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) > 0)
			continue;
	else
		while ((got = recv(fd, buffer, sizeof buffer, 0)) > 0)
			if (mode == TCP && send(fd, buffer, (size_t)got, MSG_NOSIGNAL) != got)
				break;
	close(fd);
}

static void serve(int mode, int fd)
{
	struct sockaddr_in from;
	socklen_t length = sizeof from;

	while (mode == HOLE)
		pause();
	for (ssize_t got; mode == UDP; length = sizeof from) {
		got = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &length);
		if (got > 0)
			sendto(fd, buffer, (size_t)got, 0, (struct sockaddr *)&from, length);
	}
	for (;;)
		attend(mode, accept(fd, NULL, NULL));
}

/* A process for each mode, all of which end with this one. */
static _Noreturn void serve_all(int port)
{
	int fds[MODES];

	pin(true);
	for (int mode = 0; mode < MODES; mode++)
		fds[mode] = opened(mode, "0.0.0.0", port, true);
	for (int mode = 0; mode < MODES; mode++) {
		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(mode, fds[mode]);
	}
	need(write(STDOUT_FILENO, "ready\n", 6) == 6, "stdout");
	for (;;)
		pause();
}

static double streamed(int mode, int fd, long amount)
{
	const long all = amount << 20;
	long done = 0;
	ssize_t got;
	double from = now();

	while (done < all) {
		got = mode == FETCH ? recv(fd, buffer, sizeof buffer, 0) : send(fd, buffer, sizeof buffer, MSG_NOSIGNAL);
		need(got > 0, NAMES[mode]);
		done += got;
	}
	if (mode != FETCH) { /* the far end closes when it has read all */
		need(shutdown(fd, SHUT_WR) == 0 && recv(fd, buffer, sizeof buffer, 0) == 0, "the far end");
	}
	return now() - from;
}

static void round_trip(int fd)
{
	need(send(fd, buffer, 1, MSG_NOSIGNAL) == 1, "send");
	need(recv(fd, buffer, sizeof buffer, 0) == 1, "recv");
}

/* `echo`: to a socket that is read. */
static double turn(int mode, int fd, int echo, long count)
{
	double from = now();

	for (long i = 1; i <= count; i++) {
		if (mode != HOLE) {
			round_trip(fd);
			continue;
		}
		need(send(fd, buffer, 1, 0) == 1, "send");
		if (i % BURST == 0 || i == count)
			round_trip(echo);
	}
	return (now() - from) / (double)count;
}

int main(int argc, char **argv)
{
	int mode = 0;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve_all(atoi(argv[2]));
	while (argc == 5 && mode < MODES && strcmp(argv[1], NAMES[mode]))
		mode++;
	if (argc != 5 || mode == MODES)
		return 2;
	pin(false);
	const bool stream = mode == PUSH || mode == FETCH || mode == LINK;
	int fd = opened(mode, argv[2], atoi(argv[3]), false);
	long amount = atol(argv[4]);
	int echo = mode == HOLE ? opened(UDP, argv[2], atoi(argv[3]), false) : -1;
	double best = 1e18;

	for (int i = 0; i < (stream ? STREAMS : TURNS); i++) {
		if (stream && i > 0) {
			close(fd);
			fd = opened(mode, argv[2], atoi(argv[3]), false);
		}
		double took = stream ? streamed(mode, fd, amount) : turn(mode, fd, echo, amount / TURNS);
		best = took < best ? took : best;
	}
	return printf("%.1f\n", best) < 0;
}
