/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The proof behind a cluster address that comes by the uplink: the frame was sent by the neighbour to which this node
 * would send the answer. That is the node that owns the address, or the router on the way to it.
 *
 * The kernel is asked on the spot (its routes and its neighbour table), so there is no list of MACs that could be late,
 * and a board that is replaced, or a bond that moves to another card, is believed from the moment at which the kernel
 * sends to it. Who cannot be answered is not believed; that is all that this adds to what ARP is anyway.
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "ethernet.h"
#include "identity.h"
#include "parse.h"
#include "verdict.h"

#define AF_INET		2
#define AF_INET6	10

/* Neighbour discovery (RFC 4861) is how a neighbour becomes known: types 133 to 137, which no router forwards. */
INLINE bool neighbour_discovery(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;

	if (!p->v6 || p->proto != IPPROTO_ICMPV6 || p->ttl != 255 || bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return false;
	return type >= 133 && type <= 137;
}

/* CONTINUE if the neighbour on the way to p's source is who sent this frame; else SPOOFED, or NO_NEIGHBOUR while the
 * kernel does not know that neighbour's MAC.
 */
INLINE int from_its_neighbour(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct bpf_fib_lookup way = {};
	__u8 sender[6];
	long found;

	way.ifindex = config->uplink;
	if (p->v6) {
		way.family = AF_INET6;
		__builtin_memcpy(way.ipv6_src, config->v6.node.w, sizeof(way.ipv6_src));
		__builtin_memcpy(way.ipv6_dst, p->src.w, sizeof(way.ipv6_dst));
	} else {
		way.family = AF_INET;
		way.ipv4_src = config->v4.node.w[3];
		way.ipv4_dst = p->src.w[3];
	}
	found = bpf_fib_lookup(skb, &way, sizeof(way), BPF_FIB_LOOKUP_OUTPUT);
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH || (!found && mac_none(way.dmac)))
		return VERDICT_NO_NEIGHBOUR;
	if (found || bpf_skb_load_bytes(skb, ETH_ALEN, sender, sizeof(sender)))
		return VERDICT_SPOOFED;
	return mac_equal(sender, way.dmac) ? CONTINUE : VERDICT_SPOOFED;
}
