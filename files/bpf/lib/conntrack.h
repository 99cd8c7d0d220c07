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
 * Lives as Cilium's: 8000 s for TCP that was answered, 10 s once closed both ways, 60 s for all else. What was closed both
 * ways and acknowledged goes at once where this program sees the last acknowledgement.
 *
 * A RST of the endpoint ends its flow. One of the peer may be anybody's who knows the ports; only the endpoint can tell by
 * its number, and says nothing. So it leaves 60 s, and the next packet that is none gives the flow its life back.
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

INLINE __u8 flow_tcp_flags(const struct packet *p, bool forward, bool egress)
{
	if (p->tcp & TCP_RST)
		return egress ? FLOW_FIN | FLOW_FIN_REPLY : 0;
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

/* Does this node ask the endpoint in the name of one of its pods? That is the DNS proxy. */
INLINE bool flow_of_proxy(const struct packet *p, __u8 direction, const struct who *who)
{
	return direction == DIRECTION_INGRESS && !p->from_device && who && who->identity != IDENTITY_HOST;
}

/* Does a policy lead what the endpoint sends back to the DNS proxy? Then the proxy has asked in its name, and this answer
 * came when the proxy no longer waited. By a flow that it began the endpoint could ask the server itself.
 */
INLINE bool flow_past_proxy(struct endpoint *ep, struct packet *p, const struct who *who)
{
	struct policy_key key = {
		.endpoint = ep->id, .direction = DIRECTION_EGRESS, .proto = p->flow.proto, .port = p->flow.peer_port
	};
	struct decision d;

	if (!(ep->enforce & PROXIED) || who->identity == IDENTITY_HOST)
		return false;
	consult_all(&key, who, &p->flow.peer, false, p->now, &d);
	return d.action == ACTION_REDIRECT_DNS;
}

/* What an event shall say of the decision. */
INLINE void flow_say(struct packet *p, const struct who *who, const struct decision *d)
{
	p->peer = who->identity;
	p->rule = d->rule;
	p->audited = d->audited;
	p->audit_rule = d->audit_rule;
}

/* What policy says: of a flow that begins with p in `direction` (`old` NULL; `who` its peer as the door proved it or NULL =
 * by its address), or of `old`, which another generation judged, in the direction of its own first packet. The flow is in
 * the table as decided, or a drop is returned.
 *
 * A flow that is denied now stays as it is, to be judged at each packet: forgotten, it would begin again with the next
 * packet of its other side, in the other direction. One that a name allowed goes on as long as rules let that name, though
 * it has expired: it may be silent for longer than netstack-dns can see that the address is in use.
 */
INLINE int flow_judge(struct endpoint *ep, struct packet *p, __u8 direction, const struct who *who,
		      const struct flow *old, __u32 generation)
{
	struct decision d;
	struct who by_address;
	__u64 at = old && old->flags & FLOW_NAMED ? 0 : p->now;	/* 0: no name has expired */
	int verdict;

	if (old || !who) {
		identify(&p->flow.peer, &by_address);
		if (old && old->flags & FLOW_HOST)
			by_address.identity = IDENTITY_HOST;
		who = &by_address;
	}
	if (old) {
		p->flow_made = *old;
		direction = old->direction;
	}
	verdict = judge(ep, direction, who, &p->flow.peer, p->flow.proto, flow_port(&p->flow, direction), at, &d);
	flow_say(p, who, &d);
	if (verdict >= VERDICT_DROPS)
		return verdict;
	if (direction == DIRECTION_INGRESS && flow_past_proxy(ep, p, who))
		return VERDICT_NO_PROXY;
	if (!old) {
		p->first = 1;
		__builtin_memset(&p->flow_made, 0, sizeof(p->flow_made));
		p->flow_made.direction = direction;
		p->flow_made.flags = flow_tcp_flags(p, true, direction == DIRECTION_EGRESS) |
				     (p->translated ? FLOW_SERVICE : 0);
		if (direction == DIRECTION_INGRESS && who->identity == IDENTITY_HOST)
			p->flow_made.flags |= FLOW_HOST;
		if (flow_of_proxy(p, direction, who))
			p->flow_made.flags |= FLOW_PROXY;
		p->flow_made.deadline = p->now + flow_life(p->flow.proto, p->flow_made.flags);
		if (d.named)
			flow_use_name(&p->flow, p->now);
	}
	return flow_remember(p, &d, verdict, generation);
}

/* The flow of a packet from (EGRESS) or to (INGRESS) an endpoint, p->t as the pod sees it without service addresses. NULL
 * if it has none; p->flow is its key.
 */
INLINE struct flow *flow_find(struct endpoint *ep, struct packet *p, __u8 direction)
{
	bool egress = direction == DIRECTION_EGRESS;
	struct flow *flow;

	p->flow.endpoint = ep->id;
	p->flow.peer = egress ? p->t.dst : p->t.src;
	p->flow.peer_port = egress ? p->t.dport : p->t.sport;
	p->flow.local_port = egress ? p->t.sport : p->t.dport;
	p->flow.proto = p->t.proto;
	flow = flow_get(&p->flow);
	return flow && p->now < flow->deadline ? flow : NULL;
}

/* A SYN alone begins a connection, whatever flow has its ports. So does an echo request: with the number 0 it is found
 * under the same key as one the other way.
 */
INLINE bool flow_begins(const struct packet *p)
{
	if (p->t.proto == IPPROTO_ICMP || p->t.proto == IPPROTO_ICMPV6)
		return p->starts;
	return (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* The endpoint answers somebody who called it. */
INLINE bool flow_answers(const struct packet *p, const struct flow *flow)
{
	return flow && flow->direction == DIRECTION_INGRESS && !flow_begins(p);
}

/* Is it the acknowledgement of the endpoint's FIN, with which a connection that the peer closed too is over? Nothing
 * comes after it, so the entry may go at once: who opens and closes by the thousand then has no more than are open.
 */
INLINE bool flow_over(const struct packet *p, const struct flow *flow)
{
	return (p->tcp & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK && p->ack == flow->end &&
	       (flow->flags & (FLOW_FIN | FLOW_FIN_REPLY)) == (FLOW_FIN | FLOW_FIN_REPLY);
}

/* May this packet of `flow` (flow_find) pass? `who` is the peer as its door proved it, NULL = by its address. FORWARDED,
 * REPLY, REDIRECTED_DNS, or a drop.
 */
INLINE int flow_pass(struct config *config, struct endpoint *ep, struct packet *p, __u8 direction,
		     const struct who *who, struct flow *flow)
{
	bool egress = direction == DIRECTION_EGRESS;
	/* Read before any rule is: the agent writes rules first and the generation last, so what is judged by old rules
	 * can only be remembered as of the old generation.
	 */
	__u32 generation = *(volatile __u32 *)&config->generation;
	bool forward, doubtful = !egress && p->tcp & TCP_RST;
	__u8 seen;
	int verdict;

	p->direction = direction;
	if (flow && flow_begins(p) && (flow->direction != direction || (flow->flags & (FLOW_FIN | FLOW_FIN_REPLY))))
		flow = NULL;	/* another connection, which begins */
	if (!flow && !p->starts)
		return VERDICT_DEFAULT_DENY;
	if (!flow || flow->generation != generation) {
		verdict = flow_judge(ep, p, direction, who, flow, generation);
		if (!flow || verdict >= VERDICT_DROPS)
			return verdict;
		flow = flow_get(&p->flow);
		if (!flow)
			return VERDICT_MAP_FULL;
	}
	forward = flow->direction == direction;
	verdict = flow->flags & FLOW_REDIRECT ? VERDICT_REDIRECTED_DNS : VERDICT_FORWARDED;
	p->rule = flow->rule;
	if (verdict == VERDICT_REDIRECTED_DNS && !egress && p->from_device)
		return VERDICT_SPOOFED;	/* the proxy is the only one who answers */
	if (p->quoted)
		return verdict == VERDICT_REDIRECTED_DNS && egress ? VERDICT_UNSUPPORTED : VERDICT_REPLY;

	/* In place, bits are only ever added: the kernel may have given this memory to another flow just now. */
	seen = flow_tcp_flags(p, forward, egress) | (forward || doubtful ? 0 : FLOW_REPLIED) |
	       (p->translated ? FLOW_SERVICE : 0) | (forward && flow_of_proxy(p, direction, who) ? FLOW_PROXY : 0);
	p->flow_flags = flow->flags;
	if ((flow->flags & seen) != seen)
		flow->flags |= seen;
	if (egress && p->tcp & TCP_FIN)
		flow->end = p->end;
	prolong(&flow->deadline, p->now, doubtful ? LIFE_OTHER : flow_life(p->flow.proto, flow->flags));
	if (flow->flags & FLOW_NAMED)
		flow_use_name(&p->flow, p->now);
	if (!egress && flow_over(p, flow))
		flow_forget(&p->flow);
	return forward ? verdict : VERDICT_REPLY;
}
