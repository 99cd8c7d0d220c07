/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tc egress of a pod's host-side veth: everything that a pod receives, from wherever.
 *
 * door -> endpoint -> ingress policy -> reverse translation.
 */
#include "lib/abi.h"
#include "lib/address.h"
#include "lib/compat.h"
#include "lib/conntrack.h"
#include "lib/finish.h"
#include "lib/heard.h"
#include "lib/identity.h"
#include "lib/maps.h"
#include "lib/parse.h"
#include "lib/service.h"

INLINE int to_pod(struct __sk_buff *skb, struct packet *p)
{
	struct config *config = config_get();
	struct endpoint *ep;
	struct who peer;
	int verdict, answer;

	verdict = parse(skb, p);
	if (verdict)
		return verdict;
	ep = endpoint_get(&p->dst);
	if (!config || !ep || ep->ifindex != p->ifindex)
		return VERDICT_NO_ENDPOINT;
	if (p->opaque)
		return p->opaque;
	verdict = identify_at_door(config, p->v6, &p->src, p->from_device, &peer);
	if (verdict)
		return verdict;
	verdict = flow_pass(config, ep, p, DIRECTION_INGRESS, &peer, flow_find(ep, p, DIRECTION_INGRESS));
	if (verdict == VERDICT_REPLY)
		hear(skb, p);
	if (verdict >= VERDICT_DROPS || !(p->quoted || p->flow_flags & FLOW_SERVICE))
		return verdict;
	answer = service_answer(skb, p, NAT_POD_REPLY);
	return answer >= VERDICT_DROPS ? answer : verdict;
}

int pod_egress(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(skb);

	if (!p)
		return finish_blind();
	if (skb->vlan_present)
		return finish(p, VERDICT_UNSUPPORTED);
	if (skb->protocol == be16(ETH_P_ARP))	/* the node's own, or our answer: no other device's reaches here */
		return finish(p, VERDICT_FORWARDED);
	if (skb->protocol != be16(ETH_P_IP) && skb->protocol != be16(ETH_P_IPV6))
		return finish(p, VERDICT_UNSUPPORTED);
	return finish(p, to_pod(skb, p));
}
