/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Flows of endpoints. A policy judges a flow's first packet; what follows in either direction passes by this table.
 *
 * An entry counts until its deadline and for the generation of the policy that judged it. When the generation is
 * another, the entry is judged again in the direction of its first packet before any packet passes, replies too: a
 * policy that no longer allows the flow ends it. Every endpoint's flows are kept, selected by a policy or not, in a
 * table of its own whose size is its budget: the next flow takes the place of the endpoint's own least used one.
 *
 * Only what can start a flow makes an entry. ICMP errors pass as part of the flow that they quote; an echo reply
 * without its request, and a SYN against the direction of a flow, get nothing from it.
 *
 * Lives as Cilium's: 8000 s for TCP that was answered, 10 s once closed both ways, 60 s for all else.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "identity.h"
#include "maps.h"
#include "parse.h"
#include "policy.h"
#include "verdict.h"

#define LIFE_ESTABLISHED	(8000 * NANOSECONDS)
#define LIFE_CLOSED		(10 * NANOSECONDS)
#define LIFE_OTHER		(60 * NANOSECONDS)

/* A deadline is written only when a quarter of the life is gone, or when life has become shorter. */
INLINE void prolong(__u64 *deadline, __u64 now, __u64 life)
{
	if (*deadline < now + life - life / 4 || *deadline > now + life)
		*deadline = now + life;
}

INLINE __u8 flow_tcp_flags(const struct packet *p, bool forward)
{
	if (p->tcp & TCP_RST)
		return FLOW_FIN | FLOW_FIN_REPLY;
	if (p->tcp & TCP_FIN)
		return forward ? FLOW_FIN : FLOW_FIN_REPLY;
	return 0;
}

INLINE __u64 flow_life(__u8 proto, __u8 flags)
{
	if (proto != IPPROTO_TCP || !(flags & (FLOW_REPLIED | FLOW_FIN | FLOW_FIN_REPLY)))
		return LIFE_OTHER;
	if ((flags & FLOW_FIN) && (flags & FLOW_FIN_REPLY))
		return LIFE_CLOSED;
	return flags & FLOW_REPLIED ? LIFE_ESTABLISHED : LIFE_OTHER;
}

/* The port that a flow of this direction asked for. ICMP: the type of an echo request. */
INLINE __be16 flow_port(const struct flow_key *key, __u8 direction)
{
	if (key->proto == IPPROTO_ICMP)
		return be16(ICMP4_ECHO);
	if (key->proto == IPPROTO_ICMPV6)
		return be16(ICMP6_ECHO);
	return direction == DIRECTION_EGRESS ? key->peer_port : key->local_port;
}

INLINE void flow_use_name(const struct flow_key *flow, __u64 now)
{
	struct fqdn_key key = { .endpoint = flow->endpoint, .addr = flow->peer };
	__u64 *last = fqdn_use_get(&key);

	if (!last || now - *last >= NANOSECONDS)
		fqdn_use_put(&key, &now);
}

/* p->flow_made goes into the table with what was decided. `verdict`, or MAP_FULL. */
INLINE int flow_remember(struct packet *p, const struct decision *d, int verdict, __u32 generation)
{
	p->flow_made.generation = generation;
	p->flow_made.rule = d->rule;
	p->flow_made.flags &= ~(FLOW_REDIRECT | FLOW_NAMED);
	if (verdict == VERDICT_REDIRECTED_DNS)
		p->flow_made.flags |= FLOW_REDIRECT;
	if (d->named)
		p->flow_made.flags |= FLOW_NAMED;
	return flow_put(&p->flow, &p->flow_made) ? VERDICT_MAP_FULL : verdict;
}

/* What an event shall say of the decision. */
INLINE void flow_say(struct packet *p, const struct who *who, const struct decision *d)
{
	p->peer = who->identity;
	p->rule = d->rule;
	p->audited = d->audited;
	p->audit_rule = d->audit_rule;
}

/* An entry of another generation: judged as its first packet was. FORWARDED / REDIRECTED_DNS, or a drop. */
INLINE int flow_rejudge(struct endpoint *ep, struct packet *p, struct flow *flow, __u32 generation)
{
	struct decision d;
	struct who who;
	int verdict;

	p->flow_made = *flow;
	identify(&p->flow.peer, &who);
	if (p->flow_made.flags & FLOW_HOST)
		who.identity = IDENTITY_HOST;
	verdict = judge(ep, p->flow_made.direction, &who, &p->flow.peer, p->flow.proto,
			flow_port(&p->flow, p->flow_made.direction), p->now, &d);
	flow_say(p, &who, &d);
	/* A flow that is denied stays as it is, to be judged at each packet: forgotten, it would begin again with the next
	 * packet of its other side, in the other direction.
	 */
	return verdict < VERDICT_DROPS ? flow_remember(p, &d, verdict, generation) : verdict;
}

/* The first packet of a flow. */
INLINE int flow_start(struct endpoint *ep, struct packet *p, __u8 direction, const struct who *who, __u32 generation)
{
	struct decision d;
	struct who by_address;
	int verdict;

	if (!p->starts)
		return VERDICT_DEFAULT_DENY;
	if (!who) {
		identify(&p->flow.peer, &by_address);
		who = &by_address;
	}
	verdict = judge(ep, direction, who, &p->flow.peer, p->flow.proto, flow_port(&p->flow, direction), p->now, &d);
	flow_say(p, who, &d);
	if (verdict >= VERDICT_DROPS)
		return verdict;
	p->first = 1;
	__builtin_memset(&p->flow_made, 0, sizeof(p->flow_made));
	p->flow_made.direction = direction;
	p->flow_made.flags = flow_tcp_flags(p, true);
	if (direction == DIRECTION_INGRESS && who->identity == IDENTITY_HOST)
		p->flow_made.flags |= FLOW_HOST;
	p->flow_made.deadline = p->now + flow_life(p->flow.proto, p->flow_made.flags);
	if (d.named)
		flow_use_name(&p->flow, p->now);
	return flow_remember(p, &d, verdict, generation);
}

/* A packet from (EGRESS) or to (INGRESS) an endpoint, p->t as the pod sees it without service addresses; `who` is the
 * peer as its door proved it, NULL = by its address. FORWARDED, REPLY, REDIRECTED_DNS, or a drop.
 */
INLINE int flow_pass(struct config *config, struct endpoint *ep, struct packet *p, __u8 direction,
		  const struct who *who)
{
	bool egress = direction == DIRECTION_EGRESS, syn = (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	/* Read before any rule is: the agent writes rules first and the generation last, so what is judged by old rules
	 * can only be remembered as of the old generation.
	 */
	__u32 generation = *(volatile __u32 *)&config->generation;
	struct flow *flow;
	bool forward;
	__u8 seen;
	int verdict;

	p->direction = direction;
	p->flow.endpoint = ep->id;
	p->flow.peer = egress ? p->t.dst : p->t.src;
	p->flow.peer_port = egress ? p->t.dport : p->t.sport;
	p->flow.local_port = egress ? p->t.sport : p->t.dport;
	p->flow.proto = p->t.proto;

	flow = flow_get(&p->flow);
	if (!flow || flow->deadline <= p->now)
		return flow_start(ep, p, direction, who, generation);
	forward = flow->direction == direction;
	if (syn && (flow->direction != direction || (flow->flags & (FLOW_FIN | FLOW_FIN_REPLY))))
		return flow_start(ep, p, direction, who, generation);

	verdict = flow->flags & FLOW_REDIRECT ? VERDICT_REDIRECTED_DNS : VERDICT_FORWARDED;
	if (flow->generation != generation) {
		verdict = flow_rejudge(ep, p, flow, generation);
		if (verdict >= VERDICT_DROPS)
			return verdict;
		flow = flow_get(&p->flow);
		if (!flow)
			return VERDICT_MAP_FULL;
	}
	p->rule = flow->rule;
	if (verdict == VERDICT_REDIRECTED_DNS && !egress && p->from_device)
		return VERDICT_SPOOFED;	/* the proxy is the only one who answers */
	if (p->quoted)
		return verdict == VERDICT_REDIRECTED_DNS && egress ? VERDICT_UNSUPPORTED : VERDICT_REPLY;

	/* In place, bits are only ever added: the kernel may have given this memory to another flow just now. */
	seen = flow_tcp_flags(p, forward) | (forward ? 0 : FLOW_REPLIED);
	if ((flow->flags & seen) != seen)
		flow->flags |= seen;
	prolong(&flow->deadline, p->now, flow_life(p->flow.proto, flow->flags));
	if (flow->flags & FLOW_NAMED)
		flow_use_name(&p->flow, p->now);
	return forward ? verdict : VERDICT_REPLY;
}
