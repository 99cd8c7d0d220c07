/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Services at the socket: who connects or sends to a service address talks to a backend from the first packet on, and
 * still sees the address that it asked for. Runs in process context, where scratch could be shared: stack only.
 */
#include "lib/abi.h"
#include "lib/address.h"
#include "lib/compat.h"
#include "lib/hash.h"
#include "lib/identity.h"
#include "lib/lb.h"
#include "lib/maps.h"

#define ALLOW	1
#define REFUSE	0
#define REFUSED	(-111)	/* ECONNREFUSED */

INLINE int refuse(void)
{
	count(VERDICT_NO_BACKEND);
	bpf_set_retval(REFUSED);
	return REFUSE;
}

/* Which slot: any for a connection; the same for all datagrams of one socket to one service; with client affinity the
 * same for all sockets of a network namespace, which is what a pod is.
 */
INLINE __u32 slot_hash(struct bpf_sock_addr *ctx, const struct service *service, const struct addr *addr, __be16 port,
		       bool datagrams)
{
	__u64 who;

	if (service->affinity_s)
		who = bpf_get_netns_cookie(ctx);
	else if (datagrams)
		who = bpf_get_socket_cookie(ctx);
	else
		return bpf_get_prandom_u32();
	return mix(mix(mix_addr(mix(0, who), addr), port), 0) >> 16;
}

/* Where a socket that asks for addr:port is sent instead: 1 = elsewhere (addr and port changed), 0 = stays,
 * -1 = a service without backends.
 */
INLINE int service_of_socket(struct bpf_sock_addr *ctx, struct addr *addr, __be16 *port, bool datagrams)
{
	struct config *config = config_get();
	__u64 now = bpf_ktime_get_ns();
	struct socket_peer peer = {};
	struct socket_origin origin = {};
	struct service_key key = {};
	struct service *service;
	struct backend *backend;
	__u32 id;

	if (!config)
		return 0;
	service = service_find(config, &key, addr, *port, ctx->protocol, SCOPE_CLUSTER);
	if (!service)
		return 0;
	backend = backend_pick(config, service, !addr_v4(addr), slot_hash(ctx, service, addr, *port, datagrams), now, &id);
	if (!backend)
		return -1;
	peer.cookie = bpf_get_socket_cookie(ctx);
	peer.addr = backend->addr;
	peer.port = backend->port;
	origin.addr = *addr;
	origin.port = *port;
	if (socket_origin_put(&peer, &origin)) {
		count(VERDICT_MAP_FULL);
		return -1;
	}
	*addr = backend->addr;
	*port = backend->port;
	count(VERDICT_TRANSLATED);
	return 1;
}

INLINE struct socket_origin *origin_of_peer(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	struct socket_peer peer = { .addr = *addr, .port = ctx->user_port };

	peer.cookie = bpf_get_socket_cookie(ctx);
	return socket_origin_get(&peer);
}

INLINE int translate4(struct bpf_sock_addr *ctx, bool datagrams)
{
	__be16 port = ctx->user_port;
	struct addr addr;
	int changed;

	addr_from_v4(&addr, ctx->user_ip4);
	changed = service_of_socket(ctx, &addr, &port, datagrams);
	if (changed < 0)
		return refuse();
	if (changed && addr_v4(&addr)) {
		ctx->user_ip4 = addr.w[3];
		ctx->user_port = port;
	}
	return ALLOW;
}

INLINE void load6(struct bpf_sock_addr *ctx, struct addr *addr)
{
	addr->w[0] = ctx->user_ip6[0];
	addr->w[1] = ctx->user_ip6[1];
	addr->w[2] = ctx->user_ip6[2];
	addr->w[3] = ctx->user_ip6[3];
}

INLINE void store6(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
}

INLINE int translate6(struct bpf_sock_addr *ctx, bool datagrams)
{
	__be16 port = ctx->user_port;
	struct addr addr;
	int changed;

	load6(ctx, &addr);
	changed = service_of_socket(ctx, &addr, &port, datagrams);
	if (changed < 0)
		return refuse();
	if (changed) {
		store6(ctx, &addr);
		ctx->user_port = port;
	}
	return ALLOW;
}

INLINE int restore4(struct bpf_sock_addr *ctx)
{
	struct socket_origin *origin;
	struct addr addr;

	addr_from_v4(&addr, ctx->user_ip4);
	origin = origin_of_peer(ctx, &addr);
	if (origin) {
		ctx->user_ip4 = origin->addr.w[3];
		ctx->user_port = origin->port;
	}
	return ALLOW;
}

INLINE int restore6(struct bpf_sock_addr *ctx)
{
	struct socket_origin *origin;
	struct addr addr;

	load6(ctx, &addr);
	origin = origin_of_peer(ctx, &addr);
	if (origin) {
		store6(ctx, &origin->addr);
		ctx->user_port = origin->port;
	}
	return ALLOW;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return translate4(ctx, false);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx, false);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return translate4(ctx, true);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx, true);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}
