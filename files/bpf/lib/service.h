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

/* Client affinity needs no table: the client alone picks the slot, for as long as the slots stay. */
INLINE __u32 service_hash(const struct service *service, const struct tuple *t)
{
	return service->affinity_s ? client_hash(&t->src) : tuple_hash(t);
}

/* The pin of this packet's connection, if it still leads somewhere: same service, backend there, node not dead. */
INLINE struct nat *service_pin(struct config *config, struct packet *p, struct service *service, __u8 kind)
{
	struct nat *pin = nat_live(&p->t, p->now);

	if (!pin || pin->service != service->id || !backend_get(pin->backend))
		return NULL;
	if (pin->kind == NAT_FORWARD && kind == NAT_SERVICE)
		return (p->tcp & TCP_SYN) || node_dead(config, p->v6, &pin->addr, p->now) ? NULL : pin;
	return pin->kind == kind ? pin : NULL;
}

/* Send p to the backend addr:port, and have its answers come from the service. A drop, or TRANSLATED. */
INLINE int service_translate(struct __sk_buff *skb, struct packet *p, __u8 kind, __u32 service, __u32 backend,
			     const struct addr *to, __be16 port)
{
	struct addr addr = *to;
	struct nat *there, *back;

	nat_answer_to_destination(p, &addr, port);
	nat_make(p, kind == NAT_POD ? NAT_POD_REPLY : NAT_REPLY, &p->t.dst, p->t.dport, service, backend);
	back = nat_claim_answer(p);
	if (!back)
		return VERDICT_NO_PORT;	/* the client's port is in use towards this backend through another service */
	there = nat_live(&p->t, p->now);
	if (there && nat_closed(there, back) && (p->tcp & TCP_SYN)) {
		there->flags = 0;
		back->flags = 0;
	}
	if (!there || there->kind != kind || there->backend != backend || there->service != service) {
		nat_make(p, kind, &addr, port, service, backend);
		if (nat_put(&p->t, &p->made))
			return VERDICT_MAP_FULL;
		there = nat_get(&p->t);
		if (!there)
			return VERDICT_MAP_FULL;
	}
	nat_touch(p, there, back);
	return rewrite_destination(skb, p, &addr, port) ? VERDICT_MALFORMED : VERDICT_TRANSLATED;
}

/* Reverse of service_translate: an answer gets the service's address as its source. CONTINUE if p is no such answer. */
INLINE int service_answer(struct __sk_buff *skb, struct packet *p, __u8 kind)
{
	struct nat *back = nat_live(&p->t, p->now), *there;
	struct addr addr;
	__be16 port;

	if (!back || back->kind != kind)
		return CONTINUE;
	addr = back->addr;
	port = back->port;
	p->other.src = p->t.dst;
	p->other.dst = addr;
	p->other.sport = p->t.dport;
	p->other.dport = port;
	p->other.proto = p->t.proto;
	there = nat_get(&p->other);
	if (there)
		nat_touch(p, back, there);
	return rewrite_source(skb, p, &addr, port) ? VERDICT_MALFORMED : VERDICT_TRANSLATED;
}
