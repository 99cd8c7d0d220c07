/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Service translation packet by packet, for what no socket hook has translated: traffic from the LAN, raw sockets.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "hash.h"
#include "lb.h"
#include "nat.h"
#include "parse.h"
#include "rewrite.h"
#include "verdict.h"

#define ASKER_FIRST	1024	/* ports that an asker may be given in place of its own ... */
#define ASKER_COUNT	64512	/* ... and how many */

/* Client affinity needs no table: the client alone picks the slot, for as long as the slots stay. */
INLINE __u32 service_hash(const struct service *service, const struct tuple *t)
{
	return service->affinity_s ? client_hash(&t->src) : tuple_hash(t);
}

/* The pin of this packet's connection, if it still leads somewhere: same service, backend there, node not dead. Who
 * begins anew does not wait for a backend that serves nobody, and datagrams have nothing to wait for.
 */
INLINE struct nat *service_pin(struct config *config, struct packet *p, struct service *service, __u8 kind)
{
	struct nat *pin = nat_live(&p->t, kind, p->now);
	struct backend *backend = pin && pin->service == service->id ? backend_get(pin->backend) : NULL;

	if (!backend || (backend->flags & BACKEND_SILENT && (p->proto == IPPROTO_UDP || p->tcp & TCP_SYN)))
		return NULL;
	if (pin->kind == NAT_FORWARD && kind == NAT_SERVICE)
		return (p->tcp & TCP_SYN) || node_dead(config, p->v6, &pin->addr, p->now) ? NULL : pin;
	return pin->kind == kind ? pin : NULL;
}

/* The answering direction of p's connection becomes p->made. If its asker's port leads to this backend through another
 * service already, it gets another port there, as with the kernel's NAT: *asker then, else 0. NULL if none was found.
 */
INLINE struct nat *service_claim(struct packet *p, __u8 kind, __be16 *asker)
{
	__u32 i, hash = tuple_hash(&p->t);
	struct nat *back;

	LOOP for (i = 0; i < PORT_ATTEMPTS; i++) {
		if (i)
			*asker = be16(ASKER_FIRST + (hash + i * 257) % ASKER_COUNT);
		if (*asker) {
			p->made.asker = p->t.sport;
			p->other.dport = *asker;
		}
		back = nat_claim_answer(p, kind);
		if (back)
			return back;
	}
	return NULL;
}

/* Send p to the backend addr:port, and have its answers come from the service. `there` is its pin, NULL = it has none
 * that leads to this backend. A drop, or TRANSLATED.
 */
INLINE int service_translate(struct __sk_buff *skb, struct packet *p, __u8 kind, __u32 service, __u32 backend,
			     const struct addr *to, __be16 port, struct nat *there)
{
	__be16 asker = there ? there->asker : 0;
	struct addr addr = *to;
	struct nat *back;

	nat_answer_to_destination(p, &addr, port);
	nat_make(p, kind == NAT_POD ? NAT_POD_REPLY : NAT_REPLY, &p->t.dst, p->t.dport, service, backend);
	back = service_claim(p, kind, &asker);
	if (!back)
		return VERDICT_NO_PORT;
	if (there && nat_closed(there, back) && (p->tcp & TCP_SYN)) {
		there->flags = 0;
		back->flags = 0;
	}
	if (!there) {
		nat_make(p, kind, &addr, port, service, backend);
		p->made.asker = asker;
		if (nat_put(&p->t, &p->made, kind))
			return VERDICT_MAP_FULL;
		there = nat_get(&p->t, kind);
		if (!there)
			return VERDICT_MAP_FULL;
	}
	nat_touch(p, kind, there, back);
	if (rewrite_destination(skb, p, &addr, port) || (asker && rewrite_source(skb, p, &p->t.src, asker)))
		return VERDICT_MALFORMED;
	return VERDICT_TRANSLATED;
}

/* Reverse of service_translate: an answer gets the service's address as its source. CONTINUE if p is no such answer. */
INLINE int service_answer(struct __sk_buff *skb, struct packet *p, __u8 kind)
{
	struct nat *back = nat_live(&p->t, kind, p->now), *there;
	struct addr addr;
	__be16 port, asker;

	if (!back || back->kind != kind)
		return CONTINUE;
	addr = back->addr;
	port = back->port;
	asker = back->asker;
	p->other.src = p->t.dst;
	p->other.dst = addr;
	p->other.sport = asker ? asker : p->t.dport;
	p->other.dport = port;
	p->other.proto = p->t.proto;
	there = nat_get(&p->other, kind);
	if (there)
		nat_touch(p, kind, back, there);
	if (rewrite_source(skb, p, &addr, port) || (asker && rewrite_destination(skb, p, &p->t.dst, asker)))
		return VERDICT_MALFORMED;
	return VERDICT_TRANSLATED;
}
