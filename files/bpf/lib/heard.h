/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What DNS servers answer pods past the proxy: for netstack-dns to know which name led to an address, once a policy asks.
 *
 * Told is what comes to a port from which this endpoint asked this server (conntrack). A device has its own share of the
 * ring, as with events; who is not told of loses nothing but names.
 */
#pragma once
#include "abi.h"
#include "budget.h"
#include "compat.h"
#include "maps.h"
#include "parse.h"

#define UDP_HEADER	8
#define DNS_HEADER	12

struct hearing {
	struct heard heard;
	struct budget budget;
};

SCRATCH(struct hearing, hearing);

INLINE bool heard_affordable(struct packet *p, struct hearing *h)
{
	struct budget *budget = heard_budget_get(&p->ifindex);

	if (!budget) {
		h->budget.at = p->now;
		h->budget.tokens = HEARD_BURST;
		h->budget.lost = 0;
		heard_budget_put(&p->ifindex, &h->budget);
		budget = heard_budget_get(&p->ifindex);
		if (!budget)
			return false;
	}
	if (budget_spend(budget, p->now, HEARD_RATE, HEARD_BURST))
		return true;
	__sync_fetch_and_add(&budget->lost, 1);
	return false;
}

/* p answers an endpoint, p->flow. */
INLINE void hear(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0, at = p->l4 + UDP_HEADER;
	__u64 length;
	struct hearing *h;

	if (p->proto != IPPROTO_UDP || p->flow.peer_port != be16(PROXY_PORT) || p->flow_flags & FLOW_REDIRECT)
		return;
	h = hearing.lookup(&zero);
	if (!h || skb->len < at || !heard_affordable(p, h))
		return;
	length = skb->len - at;
	if (length < DNS_HEADER)
		return;
	asm volatile("" : "+r"(length));	/* one comparison for both would be one too few for the verifier */
	if (length > HEARD_BYTES)
		return;
	if (bpf_skb_load_bytes(skb, at, h->heard.message, length))
		return;
	h->heard.server = p->flow.peer;
	h->heard.endpoint = p->flow.endpoint;
	h->heard.length = length;
	heard_put(&h->heard, sizeof(h->heard) - HEARD_BYTES + length);
}
