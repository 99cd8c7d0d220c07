/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tc ingress of a pod's host-side veth: everything that a pod sends.
 *
 * door -> gateway ARP -> service translation -> egress policy -> DNS proxy; what is left is the kernel's to route.
 */
#include "lib/abi.h"
#include "lib/address.h"
#include "lib/arp.h"
#include "lib/compat.h"
#include "lib/conntrack.h"
#include "lib/ethernet.h"
#include "lib/finish.h"
#include "lib/host.h"
#include "lib/identity.h"
#include "lib/lb.h"
#include "lib/maps.h"
#include "lib/nat.h"
#include "lib/parse.h"
#include "lib/proxy.h"
#include "lib/service.h"

/* A pod knows one neighbour, the gateway, and learns of no other. */
INLINE int gateway_arp(struct __sk_buff *skb, struct packet *p)
{
	struct arp_frame frame;
	struct endpoint *ep;
	struct addr sender;

	if (arp_parse(skb, &frame))
		return VERDICT_MALFORMED;
	addr_from_v4(&sender, arp_addr(frame.arp.sender));
	ep = endpoint_get(&sender);
	if (!ep || ep->ifindex != skb->ifindex || !mac_equal(frame.arp.sender_mac, ep->mac) ||
	    !mac_equal(frame.from, ep->mac))
		return VERDICT_SPOOFED;
	if (frame.arp.operation != be16(ARP_REQUEST) || arp_addr(frame.arp.target) != be32(GATEWAY_V4))
		return VERDICT_UNSUPPORTED;
	return arp_answer(skb, &frame, ep->host_mac, &p->action);
}

/* CONTINUE if the frame is from this endpoint to its gateway and goes to one peer. */
INLINE int door(struct __sk_buff *skb, struct packet *p, struct endpoint *ep)
{
	struct ethhdr eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return VERDICT_MALFORMED;
	if (!mac_equal(eth.h_source, ep->mac))
		return VERDICT_SPOOFED;
	if (!mac_equal(eth.h_dest, ep->host_mac) || addr_many(&p->dst) || addr_link_local(&p->dst))
		return VERDICT_UNSUPPORTED;	/* the node by its link-local address would be judged as the world */
	if (addr_gateway(&p->dst))
		return VERDICT_UNSUPPORTED;	/* the default route would take it to the LAN, in the pod's own name */
	if (addr_loopback(&p->dst))
		return VERDICT_UNSUPPORTED;	/* the node, which would be judged as the world too */
	return CONTINUE;
}

/* What no socket hook translated. CONTINUE with p->t towards the backend, or towards what is no service. An answer to who
 * called the pod does not come here: a caller is no service.
 */
INLINE int service(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct service *service = service_find(config, &p->service, &p->t.dst, p->t.dport, p->t.proto, SCOPE_CLUSTER);
	struct backend *backend;
	struct addr addr;
	struct nat *pin;
	__be16 port;
	__u32 id = 0;
	int verdict;

	if (!service)
		return service_address(&p->service, &p->t.dst, SCOPE_CLUSTER) ? VERDICT_NO_SERVICE : CONTINUE;
	p->translated = 1;
	pin = service_pin(config, p, service, NAT_POD);
	if (pin) {
		id = pin->backend;
		addr = pin->addr;
		port = pin->port;
	} else {
		if (p->quoted)
			return VERDICT_NO_SERVICE;
		backend = backend_pick(config, service, p->v6, service_hash(service, &p->t), p->now, &id);
		if (!backend)
			return VERDICT_NO_BACKEND;
		addr = backend->addr;
		port = backend->port;
	}
	verdict = service_translate(skb, p, NAT_POD, service->id, id, &addr, port, pin);
	return verdict >= VERDICT_DROPS ? verdict : CONTINUE;
}

INLINE int from_pod(struct __sk_buff *skb, struct packet *p)
{
	struct config *config = config_get();
	struct endpoint *ep;
	struct flow *flow;
	int verdict;

	verdict = parse(skb, p);
	if (verdict)
		return verdict;
	ep = endpoint_get(&p->src);
	if (!config || !ep || ep->ifindex != p->ifindex)
		return VERDICT_SPOOFED;
	verdict = door(skb, p, ep);
	if (verdict)
		return verdict;
	if (p->opaque)
		return p->opaque;
	if (!addr_equal(&p->src, &p->t.src))
		return VERDICT_SPOOFED;	/* an error about a packet that was not sent to this pod */
	flow = flow_find(ep, p, DIRECTION_EGRESS);
	if (!flow_answers(p, flow)) {
		verdict = service(skb, config, p);
		if (verdict)
			return verdict;
		if (p->translated)
			flow = flow_find(ep, p, DIRECTION_EGRESS);
	}
	verdict = flow_pass(config, ep, p, DIRECTION_EGRESS, NULL, flow);
	if (verdict == VERDICT_REPLY && p->flow_flags & FLOW_PROXY && proxy_asks_for(&p->dst)) {
		verdict = proxy_answered(skb, p);
		return verdict ? verdict : VERDICT_NO_PROXY;
	}
	if (verdict == VERDICT_FORWARDED)
		verdict = host_from_pod(skb, config, ep, p);
	return verdict == VERDICT_REDIRECTED_DNS ? proxy_redirect(skb, p) : verdict;
}

int pod_ingress(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(skb);

	if (!p)
		return finish_blind();
	if (skb->vlan_present)
		return finish(p, VERDICT_UNSUPPORTED);
	if (skb->protocol == be16(ETH_P_ARP))
		return finish(p, gateway_arp(skb, p));
	if (skb->protocol != be16(ETH_P_IP) && skb->protocol != be16(ETH_P_IPV6))
		return finish(p, VERDICT_UNSUPPORTED);
	return finish(p, from_pod(skb, p));
}
