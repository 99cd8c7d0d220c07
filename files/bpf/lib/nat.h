/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Translations that must last as long as their connection: each has an entry for its own direction and one for the
 * other, each found by the packet as it is before translation, and each packet keeps both alive.
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "conntrack.h"
#include "maps.h"
#include "parse.h"

#define PORT_ATTEMPTS	32	/* ports that are tried for a connection whose own is taken */

INLINE struct nat *nat_live(struct tuple *key, __u8 kind, __u64 now)
{
	struct nat *entry = nat_get(key, kind);

	return entry && now < entry->deadline ? entry : NULL;
}

INLINE bool nat_closed(const struct nat *a, const struct nat *b)
{
	return (a->flags & NAT_FIN) && (b->flags & NAT_FIN);
}

INLINE __u64 nat_life(__u8 proto, const struct nat *a, const struct nat *b)
{
	if (proto != IPPROTO_TCP)
		return LIFE_OTHER;
	if (nat_closed(a, b))
		return LIFE_CLOSED;
	return (a->flags & NAT_SEEN) && (b->flags & NAT_SEEN) ? LIFE_ESTABLISHED : LIFE_OTHER;
}

/* Has each side acknowledged the other's FIN with this packet? Nothing comes after it. Until then what was lost is sent
 * again, though both FINs were seen.
 */
INLINE bool nat_over(const struct packet *p, struct nat *entry, const struct nat *other)
{
	if (!(other->flags & NAT_FIN) || (p->tcp & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK || p->ack != other->end)
		return false;
	if (!(entry->flags & NAT_ACKED))
		entry->flags |= NAT_ACKED;
	return entry->flags & NAT_FIN && other->flags & NAT_ACKED && !(p->tcp & TCP_FIN);
}

/* A RST that nobody answers for (conntrack.h): not of a pod of this node, but of who speaks with it. */
INLINE bool nat_doubtful(const struct packet *p, const struct nat *entry)
{
	return p->tcp & TCP_RST && entry->kind != NAT_POD && entry->kind != NAT_SOURCE && entry->kind != NAT_REPLY;
}

/* This packet (p->t) used `entry`; `other` (p->other) is its counterpart. Neither may be looked at afterwards: both are
 * gone if the connection is over. An error belongs to the connection without living for it.
 */
INLINE void nat_touch(struct packet *p, __u8 kind, struct nat *entry, struct nat *other)
{
	bool doubtful = nat_doubtful(p, entry);
	__u64 life;

	if (p->quoted)
		return;
	if (!(entry->flags & NAT_SEEN) && !doubtful)
		entry->flags |= NAT_SEEN;
	if (p->tcp & (TCP_FIN | TCP_RST) && !doubtful)
		entry->flags |= NAT_FIN;
	if (p->tcp & TCP_RST && !doubtful)
		other->flags |= NAT_FIN;
	if (p->tcp & TCP_FIN)
		entry->end = p->end;
	if (nat_over(p, entry, other)) {
		nat_forget(&p->t, kind);
		nat_forget(&p->other, kind);
		return;
	}
	life = doubtful ? LIFE_OTHER : nat_life(p->t.proto, entry, other);
	prolong(&entry->deadline, p->now, life);
	prolong(&other->deadline, p->now, life);
}

/* The packet that answers p after p was given the destination addr:port. */
INLINE void nat_answer_to_destination(struct packet *p, const struct addr *addr, __be16 port)
{
	p->other.src = *addr;
	p->other.dst = p->t.src;
	p->other.sport = port;
	p->other.dport = p->t.sport;
	p->other.proto = p->t.proto;
}

/* The packet that answers p after p was given the source addr:port. */
INLINE void nat_answer_to_source(struct packet *p, const struct addr *addr, __be16 port)
{
	p->other.src = p->t.dst;
	p->other.dst = *addr;
	p->other.sport = p->t.dport;
	p->other.dport = port;
	p->other.proto = p->t.proto;
}

/* Fill p->made for a connection that begins now. */
INLINE struct nat *nat_make(struct packet *p, __u8 kind, const struct addr *addr, __be16 port, __u32 service,
			    __u32 backend)
{
	__builtin_memset(&p->made, 0, sizeof(p->made));
	p->made.deadline = p->now + LIFE_OTHER;
	p->made.addr = *addr;
	p->made.port = port;
	p->made.kind = kind;
	p->made.service = service;
	p->made.backend = backend;
	return &p->made;
}

/* The answering direction (p->other) becomes p->made, unless a live translation of another connection holds it.
 * Claimed by insertion, so of two packets on two CPUs one wins.
 */
INLINE struct nat *nat_claim_answer(struct packet *p, __u8 kind)
{
	struct nat *there = nat_get(&p->other, kind);

	if (there && p->now < there->deadline)
		return there->kind == p->made.kind && there->port == p->made.port && there->asker == p->made.asker &&
		       addr_equal(&there->addr, &p->made.addr) ? there : NULL;
	if (there)
		nat_forget(&p->other, kind);
	return nat_claim(&p->other, &p->made, kind) ? NULL : nat_get(&p->other, kind);
}
