/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The node itself as an endpoint, while a policy selects it (nodeSelector): config.host says so, the endpoint stands
 * under the node's address, its rules and flows under HOST_ENDPOINT.
 *
 * Judged: what comes by the uplink for any address of the node, what the node sends by the uplink, and what its own
 * pods send it. Not judged: multicast and 255.255.255.255 (DHCP, mDNS, IGMP), neighbour discovery, and the node to its
 * own pods. A network's own broadcast (192.168.86.255) is judged: as the node's where it arrives, as the LAN's where it
 * is sent. What has no ports (other protocols, fragments but the first) passes by rules that name none.
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "conntrack.h"
#include "identity.h"
#include "maps.h"
#include "neighbour.h"
#include "parse.h"
#include "policy.h"
#include "verdict.h"

/* NULL if nothing selects this node. */
INLINE struct endpoint *host_get(struct config *config)
{
	struct addr key;

	if (!config->host)
		return NULL;
	key = addr_none(&config->v4.node) ? config->v6.node : config->v4.node;
	return endpoint_get(&key);
}

/* Is `dst` an address of this node, of whatever interface? */
INLINE bool host_has(struct __sk_buff *skb, struct config *config, struct packet *p, const struct addr *dst)
{
	struct family_config *own = family(config, p->v6);
	struct bpf_fib_lookup fib = {};
	int found;

	if (addr_equal(dst, &own->node))
		return true;
	if (addr_many(dst) || addr_within(dst, &own->pod_net, own->pod_net_bits))
		return false;
	fib.ifindex = p->ifindex;
	if (p->v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, p->src.w, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, dst->w, sizeof(fib.ipv6_dst));
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->src.w[3];
		fib.ipv4_dst = dst->w[3];
	}
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return found == BPF_FIB_LKUP_RET_NOT_FWDED || found == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* A packet to (INGRESS) or from (EGRESS) the node. FORWARDED, REPLY, or a drop.
 *
 * A TCP connection may be older than the policy, and its next packet may go the other way than its first one did: one
 * in the middle of a connection that is not known passes if the policy lets it begin in either direction.
 */
INLINE int host_pass(struct __sk_buff *skb, struct config *config, struct endpoint *host, struct packet *p,
		     __u8 direction, const struct who *peer)
{
	__u32 generation = config->generation;
	__u8 other = direction == DIRECTION_INGRESS ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	int verdict;

	if (neighbour_discovery(skb, p))
		return VERDICT_FORWARDED;
	if (p->opaque) {
		verdict = parse_opaque(skb, p);
		if (verdict)
			return verdict;
	}
	verdict = flow_pass(config, host, p, direction, peer, flow_find(host, p, direction));
	if ((verdict == VERDICT_DEFAULT_DENY || verdict == VERDICT_POLICY_DENIED) && p->t.proto == IPPROTO_TCP &&
	    !p->opaque && !p->quoted && !(p->tcp & TCP_SYN) && !flow_get(&p->flow))
		return flow_judge(host, p, other, peer, NULL, generation);
	return verdict == VERDICT_REDIRECTED_DNS ? VERDICT_POLICY_DENIED : verdict;
}

/* By the uplink, for the node or to be routed on. */
INLINE int host_enter(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct endpoint *host = host_get(config);
	struct who peer;
	int verdict;

	if (!host || !host_has(skb, config, p, &p->t.dst))
		return VERDICT_FORWARDED;
	verdict = identify_at_door(config, p->v6, &p->t.src, p->from_device, &peer);
	return verdict ? verdict : host_pass(skb, config, host, p, DIRECTION_INGRESS, &peer);
}

/* The node says of a packet that it routes, hence of no flow of its own, that it does not arrive. So the error itself is
 * judged, by its type.
 */
INLINE int host_complains(struct __sk_buff *skb, struct endpoint *host, struct packet *p, const struct who *peer)
{
	struct decision d;
	int verdict;
	__u8 type;

	if (bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)))
		return VERDICT_MALFORMED;
	verdict = judge(host, DIRECTION_EGRESS, peer, &p->dst, p->proto, be16(type), p->now, &d);
	p->direction = DIRECTION_EGRESS;
	flow_say(p, peer, &d);
	return verdict == VERDICT_REDIRECTED_DNS ? VERDICT_POLICY_DENIED : verdict;
}

/* By the uplink, made by the node or routed. */
INLINE int host_leave(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct endpoint *host = p->from_device ? NULL : host_get(config);
	struct who peer;

	if (!host || addr_many(&p->dst))
		return CONTINUE;
	identify(&p->t.dst, &peer);
	if (addr_equal(&peer.node, &family(config, p->v6)->node))
		identify_within(&p->t.dst, 127, &peer);	/* ours, and leaves: the broadcast of a network of ours */
	if (p->quoted && !flow_find(host, p, DIRECTION_EGRESS))
		return host_complains(skb, host, p, &peer);
	return host_pass(skb, config, host, p, DIRECTION_EGRESS, &peer);
}

/* From the pod `ep` to its own node, allowed by its own policies. Its flow is known there, so replies are not asked. */
INLINE int host_from_pod(struct __sk_buff *skb, struct config *config, struct endpoint *ep, struct packet *p)
{
	struct endpoint *host = host_get(config);
	struct who pod = { .identity = ep->identity };
	struct decision d;
	int verdict;

	if (!host || !host_has(skb, config, p, &p->t.dst))
		return VERDICT_FORWARDED;
	verdict = judge(host, DIRECTION_INGRESS, &pod, &p->t.src, p->t.proto, flow_port(&p->flow, DIRECTION_EGRESS),
			p->now, &d);
	/* The node's word, not the pod's. What it only would say is told when the pod's own policies were asked too. */
	if (verdict >= VERDICT_DROPS || (d.audited && p->peer && !p->audited)) {
		p->flow.endpoint = host->id;
		p->direction = DIRECTION_INGRESS;
		p->peer = ep->identity;
		p->rule = d.rule;
		p->audited = d.audited;
		p->audit_rule = d.audit_rule;
	}
	return verdict;
}
