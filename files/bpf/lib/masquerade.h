/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pods speak to the world with their node's address. Source ports come from a range that the node itself does not use,
 * but where a program asks for one there (WireGuard's 51820). That is passed over, so a port that is translated belongs to
 * a pod and every other one to the node.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "hash.h"
#include "identity.h"
#include "nat.h"
#include "parse.h"
#include "rewrite.h"
#include "verdict.h"

/* Did the peer open this connection? Then its answers keep the pod's address. */
INLINE bool opened_by_peer(struct packet *p)
{
	struct endpoint *ep = endpoint_get(&p->t.src);
	struct flow *flow = ep ? flow_find(ep, p, DIRECTION_EGRESS) : NULL;

	return flow && flow->direction == DIRECTION_INGRESS;
}

/* The i-th port to try. The first half of the range is everybody's. Of the second each pod has its own share (a node of
 * up to 64 pods; beyond, pods whose addresses end alike have one together), so a pod that takes every port towards a
 * server leaves others theirs.
 */
INLINE __u32 masquerade_candidate(struct packet *p, __u32 hash, __u32 i)
{
	__u32 at = hash + i * 257;

	if (i < PORT_ATTEMPTS / 2)
		return MASQUERADE_FIRST + at % MASQUERADE_SHARED;
	return MASQUERADE_FIRST + MASQUERADE_SHARED + be32(p->t.src.w[3]) % MASQUERADE_OWNERS * MASQUERADE_OWN +
	       at % MASQUERADE_OWN;
}

/* Does the node itself listen at this port, or speak from it with p's destination? */
INLINE bool masquerade_taken(struct __sk_buff *skb, struct packet *p, const struct addr *node, __be16 port)
{
	struct bpf_sock_tuple back = {};
	struct bpf_sock *sk = NULL;
	__u32 size = sizeof(back.ipv4);

	if (p->v6) {
		__builtin_memcpy(back.ipv6.saddr, p->t.dst.w, sizeof(back.ipv6.saddr));
		__builtin_memcpy(back.ipv6.daddr, node->w, sizeof(back.ipv6.daddr));
		back.ipv6.sport = p->t.dport;
		back.ipv6.dport = port;
		size = sizeof(back.ipv6);
	} else {
		back.ipv4.saddr = p->t.dst.w[3];
		back.ipv4.daddr = node->w[3];
		back.ipv4.sport = p->t.dport;
		back.ipv4.dport = port;
	}
	if (p->proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &back, size, BPF_F_CURRENT_NETNS, 0);
	else if (p->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &back, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* A free source port for p's connection: p->other and p->made stand for it then. NULL if none was found. */
INLINE struct nat *masquerade_port(struct __sk_buff *skb, struct packet *p, const struct addr *node, __be16 *port)
{
	__u32 i, hash = tuple_hash(&p->t);
	struct nat *back;

	nat_answer_to_source(p, node, 0);
	nat_make(p, NAT_SOURCE_REPLY, &p->t.src, p->t.sport, 0, 0);
	LOOP for (i = 0; i < PORT_ATTEMPTS; i++) {
		*port = be16(masquerade_candidate(p, hash, i));
		p->other.dport = *port;
		if (masquerade_taken(skb, p, node, *port))
			continue;
		back = nat_claim_answer(p, NAT_SOURCE_REPLY);
		if (back)
			return back;
	}
	return NULL;
}

/* p leaves this node by the uplink with a pod's source. CONTINUE = stays as it is. */
INLINE int masquerade(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	const struct addr *node = &family(config, p->v6)->node;
	struct nat *there, *back = NULL;
	struct who peer;
	__be16 port;

	identify(&p->dst, &peer);
	if (!peer.outside)
		return CONTINUE;
	if (p->opaque)
		return p->opaque;
	there = nat_live(&p->t, NAT_SOURCE, p->now);
	if (there && there->kind == NAT_SOURCE && addr_equal(&there->addr, node)) {
		port = there->port;
		nat_answer_to_source(p, node, port);
		nat_make(p, NAT_SOURCE_REPLY, &p->t.src, p->t.sport, 0, 0);
		back = nat_claim_answer(p, NAT_SOURCE_REPLY);	/* it is there, unless it was evicted */
	} else if (opened_by_peer(p)) {
		return CONTINUE;
	}
	if (!back) {
		if (!p->starts)
			return VERDICT_DEFAULT_DENY;	/* an error or echo reply that belongs to nothing */
		if (p->proto == IPPROTO_SCTP)
			return VERDICT_UNSUPPORTED;
		back = masquerade_port(skb, p, node, &port);
		if (!back)
			return VERDICT_NO_PORT;
		nat_make(p, NAT_SOURCE, node, port, 0, 0);
		if (nat_put(&p->t, &p->made, NAT_SOURCE))
			return VERDICT_MAP_FULL;
		there = nat_get(&p->t, NAT_SOURCE);
		if (!there)
			return VERDICT_MAP_FULL;
	}
	if (nat_closed(there, back) && (p->tcp & TCP_SYN)) {
		there->flags = 0;
		back->flags = 0;
	}
	nat_touch(p, NAT_SOURCE, there, back);
	return rewrite_source(skb, p, node, port) ? VERDICT_MALFORMED : VERDICT_MASQUERADED;
}

/* p came to this node by the uplink: is it an answer to a masqueraded connection? CONTINUE = no. */
INLINE int masquerade_answer(struct __sk_buff *skb, struct packet *p)
{
	struct nat *back, *there;
	struct addr addr;
	__be16 port;

	if (be16(p->t.dport) < MASQUERADE_FIRST)
		return CONTINUE;
	back = nat_live(&p->t, NAT_SOURCE_REPLY, p->now);
	if (!back || back->kind != NAT_SOURCE_REPLY)
		return CONTINUE;
	addr = back->addr;
	port = back->port;
	p->other.src = addr;
	p->other.dst = p->t.src;
	p->other.sport = port;
	p->other.dport = p->t.sport;
	p->other.proto = p->t.proto;
	there = nat_get(&p->other, NAT_SOURCE);
	if (there)
		nat_touch(p, NAT_SOURCE, back, there);
	return rewrite_destination(skb, p, &addr, port) ? VERDICT_MALFORMED : VERDICT_TRANSLATED;
}
