/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What is told of packets: every drop, and the first packet of every flow of an endpoint, each with who decided.
 *
 * Whoever repeats itself (same endpoint and peer, port, verdict) is told of once a second, with how often it was left
 * out since. And each device may have so many events told and no more: a pod that scans the world spends its own share,
 * and what was not told is counted for it (event_budget.lost). So the cost is bounded whatever is sent.
 */
#pragma once
#include "abi.h"
#include "budget.h"
#include "compat.h"
#include "maps.h"
#include "parse.h"
#include "verdict.h"

struct telling {
	struct event event;
	struct event_key key;
	struct event_seen seen;
	struct budget budget;
};

SCRATCH(struct telling, telling);

/* Is it the first of its kind for a while? Then event.repeats says how many were left out. */
INLINE bool event_news(struct telling *t)
{
	struct event_seen *seen = event_seen_get(&t->key);

	if (seen && t->event.at - seen->at < EVENT_REPEAT) {
		__sync_fetch_and_add(&seen->repeats, 1);
		return false;
	}
	t->event.repeats = seen ? seen->repeats : 0;
	t->seen.at = t->event.at;
	t->seen.repeats = 0;
	event_seen_put(&t->key, &t->seen);
	return true;
}

INLINE void event_tell(struct telling *t)
{
	struct budget *budget = event_budget_get(&t->event.ifindex);

	if (!budget) {
		t->budget.at = t->event.at;
		t->budget.tokens = EVENT_BURST;
		t->budget.lost = 0;
		event_budget_put(&t->event.ifindex, &t->budget);
		budget = event_budget_get(&t->event.ifindex);
		if (!budget)
			return;
	}
	if (!budget_spend(budget, t->event.at, EVENT_RATE, EVENT_BURST) || event_put(&t->event))
		__sync_fetch_and_add(&budget->lost, 1);
}

/* `verdict` about p, which may be no more than a frame by a device (p->t is all zero then). */
INLINE void event_of(struct packet *p, __u32 verdict)
{
	bool in = p->direction == DIRECTION_INGRESS;
	__u32 zero = 0;
	struct telling *t = telling.lookup(&zero);

	if (!t)
		return;
	t->event.at = p->now;
	t->event.src = p->t.src;
	t->event.dst = p->t.dst;
	t->event.sport = p->t.sport;
	t->event.dport = p->t.dport;
	t->event.proto = p->t.proto;
	t->event.verdict = verdict;
	t->event.direction = p->direction;
	t->event.tcp = p->tcp;
	t->event.endpoint = p->flow.endpoint;
	t->event.peer = p->peer;
	t->event.rule = verdict == VERDICT_AUDITED ? p->audit_rule : p->rule;
	t->event.ifindex = p->ifindex;

	t->key.peer = in ? p->t.src : p->t.dst;
	t->key.endpoint = p->flow.endpoint;
	t->key.ifindex = p->ifindex;
	t->key.port = p->t.dport;
	t->key.proto = p->t.proto;
	t->key.verdict = verdict;
	t->key.direction = p->direction;
	if (event_news(t))
		event_tell(t);
}
