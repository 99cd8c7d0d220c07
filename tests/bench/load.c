/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The bench's load generator and the server that it talks to: one thread and one epoll each, no more system calls than
 * the exchange needs, so that what is between them is what is measured.
 *
 *   load serve PORT...                          TCP and UDP on every address of its namespace
 *   load tcp PARALLEL SECONDS SOURCES           connect, one byte there, one byte back, the server closes
 *   load udp PARALLEL SECONDS SOURCES           one datagram there, one back, each from a new socket
 *   load stream 1 SECONDS SOURCES               one connection, as many bytes as it carries
 *
 * Clients read their targets from standard input, a line "ADDRESS PORT" each, and take one at random for every exchange.
 * SOURCES is "-", or "ADDRESS COUNT": each exchange comes from one of COUNT addresses, like those of many clients (one
 * client's 60,000 ports would be worn out in seconds). An object of JSON tells how it went: exchanges done and failed,
 * bytes that were acknowledged, seconds, and microseconds of work of all of the machine's processors (/proc/stat).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ECHO 'e'	/* first byte of a connection: answer one byte and close */
#define SINK 's'	/* ... or read until the end */
#define BLOCK (128 * 1024)
#define MAX_FD 65536
#define MAX_TARGETS 65536
#define MAX_PARALLEL 1024
#define WARM_UP 0.1	/* seconds that do not count */

static const double PATIENCE_TCP = 3.0, PATIENCE_UDP = 0.25;	/* after which an exchange has failed */
static char block[BLOCK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

/* ---- server ---- */

enum role { NEW, LISTENER, DATAGRAMS, STREAM };
static uint8_t role_of[MAX_FD];

static void listen_on(int epoll, int port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port) };
	int stream = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	int one = 1;

	setsockopt(stream, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(datagrams, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one));
	if (bind(stream, (void *)&addr, sizeof(addr)) || bind(datagrams, (void *)&addr, sizeof(addr)))
		die("bind");
	if (listen(stream, 4096))
		die("listen");
	role_of[stream] = LISTENER;
	role_of[datagrams] = DATAGRAMS;
	watch(epoll, stream, EPOLLIN, stream);
	watch(epoll, datagrams, EPOLLIN, datagrams);
}

static void accept_all(int epoll, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		if (fd >= MAX_FD) {
			close(fd);
			continue;
		}
		role_of[fd] = NEW;
		watch(epoll, fd, EPOLLIN, fd);
	}
}

/* Every answer leaves from the address that was asked. */
static void answer_datagrams(int fd)
{
	struct sockaddr_in from;
	char control[64];
	struct iovec data = { .iov_base = block, .iov_len = sizeof(block) };
	struct msghdr message = { .msg_name = &from, .msg_iov = &data, .msg_iovlen = 1, .msg_control = control };
	ssize_t size;

	for (;;) {
		struct cmsghdr *header;

		message.msg_namelen = sizeof(from);
		message.msg_controllen = sizeof(control);
		data.iov_len = sizeof(block);
		size = recvmsg(fd, &message, 0);
		if (size < 0)
			return;
		data.iov_len = size;
		header = CMSG_FIRSTHDR(&message);
		if (header && header->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo *info = (void *)CMSG_DATA(header);

			info->ipi_spec_dst = info->ipi_addr;
			info->ipi_ifindex = 0;
		}
		sendmsg(fd, &message, 0);
	}
}

static void serve_stream(int fd)
{
	ssize_t size = recv(fd, block, sizeof(block), 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size > 0 && role_of[fd] == NEW && block[0] == SINK)
		role_of[fd] = STREAM;
	if (size > 0 && role_of[fd] == STREAM)
		return;
	if (size > 0)
		send(fd, block, 1, MSG_NOSIGNAL);
	close(fd);
}

static _Noreturn void serve(int count, char **ports)
{
	struct epoll_event events[256];
	int epoll = epoll_create1(0), i, ready;

	for (i = 0; i < count; i++)
		listen_on(epoll, atoi(ports[i]));
	puts("serving");
	fflush(stdout);
	for (;;) {
		ready = epoll_wait(epoll, events, 256, -1);
		for (i = 0; i < ready; i++) {
			int fd = events[i].data.u64;

			if (role_of[fd] == LISTENER)
				accept_all(epoll, fd);
			else if (role_of[fd] == DATAGRAMS)
				answer_datagrams(fd);
			else
				serve_stream(fd);
		}
	}
}

/* ---- client ---- */

struct slot {
	int fd;
	uint32_t turn;	/* tells an event of an earlier socket with the same slot apart */
	bool asked;
	double began;
};

static struct sockaddr_in targets[MAX_TARGETS];
static struct slot slots[MAX_PARALLEL];
static uint32_t target_count, source_first, source_count;
static uint64_t done, failed, dice = 88172645463325252ull;

static uint32_t random_below(uint32_t limit)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return (dice >> 16) % limit;
}

static void read_targets(void)
{
	char address[64];
	int port;

	while (target_count < MAX_TARGETS && scanf("%63s %d", address, &port) == 2) {
		struct sockaddr_in *target = &targets[target_count++];

		target->sin_family = AF_INET;
		target->sin_port = htons(port);
		if (inet_pton(AF_INET, address, &target->sin_addr) != 1)
			die(address);
	}
	if (!target_count) {
		fputs("no targets\n", stderr);
		exit(1);
	}
}

/* A connected, or connecting, socket to a random target from a random source; -1 if there is none to be had. */
static int connected(int type, int flags)
{
	struct sockaddr_in source = { .sin_family = AF_INET };
	int one = 1, fd = socket(AF_INET, type | flags, 0);

	if (fd < 0)
		die("socket");
	if (source_count) {
		source.sin_addr.s_addr = htonl(source_first + random_below(source_count));
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
		if (bind(fd, (void *)&source, sizeof(source)))
			die("bind");
	}
	if (connect(fd, (void *)&targets[random_below(target_count)], sizeof(source)) && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

static void begin(int epoll, uint32_t index, bool tcp)
{
	struct slot *slot = &slots[index];
	uint32_t events = EPOLLIN | EPOLLET | (tcp ? EPOLLOUT : 0);
	int attempts = 0;

	do {
		slot->fd = connected(tcp ? SOCK_STREAM : SOCK_DGRAM, SOCK_NONBLOCK);
		failed += slot->fd < 0;
	} while (slot->fd < 0 && ++attempts < 100);
	if (slot->fd < 0)
		die("connect");
	slot->began = now();
	slot->asked = !tcp;
	watch(epoll, slot->fd, events, (uint64_t)++slot->turn << 32 | index);
	if (!tcp)
		send(slot->fd, "e", 1, MSG_NOSIGNAL);
}

/* True when the exchange of this slot is over. */
static bool step(struct slot *slot, uint32_t events)
{
	char byte;
	ssize_t size;

	if (!slot->asked && (events & (EPOLLOUT | EPOLLERR))) {
		slot->asked = true;
		if (send(slot->fd, "e", 1, MSG_NOSIGNAL) != 1) {
			failed++;
			return true;
		}
	}
	if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		return false;
	size = recv(slot->fd, &byte, 1, 0);
	if (size < 0 && errno == EAGAIN)
		return false;
	if (size == 1)
		done++;
	else
		failed++;
	return true;
}

static uint64_t busy_us(void)
{
	unsigned long long user, nice, system, idle, iowait, irq, softirq;
	FILE *file = fopen("/proc/stat", "r");

	if (!file || fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &iowait, &irq,
			    &softirq) != 7)
		die("/proc/stat");
	fclose(file);
	return (user + nice + system + irq + softirq) * (1000000 / sysconf(_SC_CLK_TCK));
}

static void report(double seconds, uint64_t bytes, uint64_t busy)
{
	printf("{\"done\": %llu, \"failed\": %llu, \"seconds\": %.6f, \"bytes\": %llu, \"busy_us\": %llu}\n",
	       (unsigned long long)done, (unsigned long long)failed, seconds, (unsigned long long)bytes,
	       (unsigned long long)busy);
}

static int exchange(bool tcp, uint32_t parallel, double seconds)
{
	double patience = tcp ? PATIENCE_TCP : PATIENCE_UDP, began, looked;
	struct epoll_event events[MAX_PARALLEL];
	int epoll = epoll_create1(0), i, ready;
	bool counting = false;
	uint64_t busy = 0;
	uint32_t index;

	for (index = 0; index < parallel; index++)
		begin(epoll, index, tcp);
	began = looked = now();
	for (;;) {
		double time;

		ready = epoll_wait(epoll, events, MAX_PARALLEL, 50);
		for (i = 0; i < ready; i++) {
			struct slot *slot;

			index = (uint32_t)events[i].data.u64;
			slot = &slots[index];
			if (slot->turn == events[i].data.u64 >> 32 && step(slot, events[i].events)) {
				close(slot->fd);
				begin(epoll, index, tcp);
			}
		}
		time = now();
		if (!counting && time - began >= WARM_UP) {
			counting = true;
			done = failed = 0;
			busy = busy_us();
			began = time;
		}
		if (counting && time - began >= seconds) {
			report(time - began, 0, busy_us() - busy);
			return 0;
		}
		if (time - looked < 0.05)
			continue;
		looked = time;
		for (index = 0; index < parallel; index++)
			if (time - slots[index].began > patience) {
				failed++;
				close(slots[index].fd);
				begin(epoll, index, tcp);
			}
	}
}

static uint64_t acknowledged(int fd)
{
	struct tcp_info info = {};
	socklen_t size = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
		die("TCP_INFO");
	return info.tcpi_bytes_acked;
}

static int stream(double seconds)
{
	int fd = connected(SOCK_STREAM, 0);
	uint64_t bytes = 0, busy = 0;
	bool counting = false;
	double began, time;

	if (fd < 0 || send(fd, "s", 1, MSG_NOSIGNAL) != 1)
		die("connect");
	began = now();
	for (;;) {
		if (send(fd, block, sizeof(block), MSG_NOSIGNAL) < 0)
			die("send");
		time = now();
		if (!counting && time - began >= WARM_UP) {
			counting = true;
			bytes = acknowledged(fd);
			busy = busy_us();
			began = time;
		}
		if (counting && time - began >= seconds) {
			done = 1;
			report(time - began, acknowledged(fd) - bytes, busy_us() - busy);
			return 0;
		}
	}
}

int main(int argc, char **argv)
{
	struct rlimit files = { MAX_FD, MAX_FD };

	setrlimit(RLIMIT_NOFILE, &files);
	if (argc > 2 && !strcmp(argv[1], "serve"))
		serve(argc - 2, argv + 2);
	if (argc < 5) {
		fputs("usage: load serve PORT... | load tcp|udp|stream PARALLEL SECONDS -|ADDRESS COUNT\n", stderr);
		return 2;
	}
	read_targets();
	dice ^= (uint64_t)(now() * 1e9);
	if (argc > 5) {
		source_first = ntohl(inet_addr(argv[4]));
		source_count = atoi(argv[5]);
	}
	if (!strcmp(argv[1], "stream"))
		return stream(atof(argv[3]));
	if (atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_PARALLEL) {
		fputs("PARALLEL must be 1 to 1024\n", stderr);
		return 2;
	}
	return exchange(!strcmp(argv[1], "tcp"), atoi(argv[2]), atof(argv[3]));
}
