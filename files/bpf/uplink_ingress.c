/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tc ingress of the uplink: everything that the LAN sends to this node.
 *
 * ARP for LoadBalancer addresses -> door -> services -> answers to masqueraded connections -> to a pod of this node,
 * past the stack; the kernel gets the rest.
 * Service addresses sit on no interface, so what no service port takes is dropped here: the kernel would route it,
 * send redirects or answer "unreachable" for an address that another node serves.
 */
#define WITHOUT_NAMES

#include "lib/abi.h"
#include "lib/address.h"
#include "lib/arp.h"
#include "lib/compat.h"
#include "lib/deliver.h"
#include "lib/finish.h"
#include "lib/hash.h"
#include "lib/host.h"
#include "lib/identity.h"
#include "lib/lb.h"
#include "lib/maps.h"
#include "lib/masquerade.h"
#include "lib/nat.h"
#include "lib/neighbour.h"
#include "lib/parse.h"
#include "lib/service.h"

#define PACKET_OTHERHOST 3	/* linux/if_packet.h */
#define VLAN_NUMBER	0xfff

INLINE struct vip *vip_here(__u32 ifindex, const struct addr *addr)
{
	struct vip_key key = { .addr = *addr, .ifindex = ifindex };

	return vip_get(&key);
}

/* A request for an allocated address is answered by its owner while the deadline holds, and by nobody else on this
 * node ever: a probe (sender 0.0.0.0) is answered too, that defends the address (RFC 5227 section 2.1.1). Another's
 * announcement (sender = target) is not a question: the announcer watches for those, and the kernel has no such address.
 */
INLINE int vip_arp(struct __sk_buff *skb, struct packet *p)
{
	struct arp_frame frame;
	struct addr target;
	struct vip *vip;

	if (arp_parse(skb, &frame) || frame.arp.operation != be16(ARP_REQUEST))
		return VERDICT_FORWARDED;
	addr_from_v4(&target, arp_addr(frame.arp.target));
	vip = vip_here(skb->ifindex, &target);
	if (!vip || arp_addr(frame.arp.sender) == target.w[3])
		return VERDICT_FORWARDED;
	if (p->now >= vip->deadline)
		return VERDICT_VIP_NOT_OWNED;
	return arp_answer(skb, &frame, vip->mac, &p->action);
}

/* While the MAC of a node is not known, its packets reach this node itself and nothing behind it: an answer makes it
 * known, and to drop them all could keep two nodes from ever meeting. To take them for the world's would be no safer
 * than to believe them: a rule that denies their owner would not.
 */
INLINE int before_it_is_known(struct config *config, struct packet *p, const struct who *who)
{
	if (config->host)
		return VERDICT_NO_NEIGHBOUR;	/* policies tell nodes apart here too, and the agent that says so asks for MACs */
	if (!addr_equal(&p->src, &who->node) || !addr_equal(&p->dst, &family(config, p->v6)->node))
		return VERDICT_NO_NEIGHBOUR;
	if (service_find(config, &p->service, &p->t.dst, p->t.dport, p->t.proto, SCOPE_WORLD))
		return VERDICT_NO_NEIGHBOUR;
	return VERDICT_FORWARDED;
}

/* Nobody on the LAN speaks with this node's addresses or those of its pods; with other nodes' only those nodes. Nor with a
 * loopback address, or to one: what listens there shall not be heard outside. From :: is asked whether an address is free
 * (RFC 4862), also of a node that has no IPv6 here.
 */
INLINE int door(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct family_config *own = family(config, p->v6);
	struct who who;
	int verdict;

	if (addr_loopback(&p->src) || addr_loopback(&p->dst))
		return VERDICT_SPOOFED;
	if (addr_none(&p->src))
		return CONTINUE;
	if (addr_equal(&p->src, &own->node) || addr_within(&p->src, &own->pod_net, own->pod_net_bits))
		return VERDICT_SPOOFED;
	identify(&p->src, &who);
	if (who.outside || neighbour_discovery(skb, p))
		return CONTINUE;
	if (addr_none(&who.node) || addr_equal(&who.node, &own->node))
		return VERDICT_SPOOFED;
	verdict = from_its_neighbour(skb, config, p);
	return verdict == VERDICT_NO_NEIGHBOUR ? before_it_is_known(config, p, &who) : verdict;
}

/* A backend on this node, or the node of another one. */
struct target {
	struct addr addr;
	__u32 backend;
	__be16 port;
	__u8 local;
};

/* The packet goes on as it is; the node that hosts the backend translates it and answers the client itself. */
INLINE int forward(struct __sk_buff *skb, struct config *config, struct packet *p, const struct addr *node)
{
	struct bpf_redir_neigh next = {};
	int verdict = rewrite_ttl(skb, p);

	if (verdict)
		return verdict;
	if (p->v6) {
		next.nh_family = AF_INET6;
		__builtin_memcpy(next.ipv6_nh, node->w, sizeof(next.ipv6_nh));
	} else {
		next.nh_family = AF_INET;
		next.ipv4_nh = node->w[3];
	}
	p->action = redirect_neigh(config->uplink, &next, sizeof(next), 0);
	return VERDICT_FORWARDED;
}

/* Where a connection goes that begins with p: *to filled, or a drop. */
INLINE int serve_new(struct config *config, struct packet *p, struct service *service, struct target *to)
{
	struct backend *backend = backend_pick(config, service, p->v6, service_hash(service, &p->t), p->now, &to->backend);

	if (!backend)
		return VERDICT_NO_BACKEND;
	if (addr_none(&backend->node))
		return VERDICT_UNSUPPORTED;	/* outside the cluster: its answer would not come back through us */
	to->local = addr_equal(&backend->node, &family(config, p->v6)->node);
	to->addr = to->local ? backend->addr : backend->node;
	to->port = backend->port;
	if (p->quoted)
		return to->local ? VERDICT_NO_SERVICE : CONTINUE;	/* an error about a connection that is not here */
	if (to->local)
		return CONTINUE;
	nat_make(p, NAT_FORWARD, &to->addr, 0, service->id, to->backend);
	return nat_put(&p->t, &p->made, NAT_FORWARD) ? VERDICT_MAP_FULL : CONTINUE;
}

INLINE int serve(struct __sk_buff *skb, struct config *config, struct packet *p)
{
	struct service *service = NULL;
	struct target to = {};
	struct nat *pin;
	int verdict;

	if (!p->opaque)
		service = service_find(config, &p->service, &p->t.dst, p->t.dport, p->t.proto, SCOPE_WORLD);
	if (!service) {
		if (service_address(&p->service, &p->dst, SCOPE_WORLD) || vip_here(p->ifindex, &p->dst))
			return p->opaque ? p->opaque : VERDICT_NO_SERVICE;
		return CONTINUE;
	}
	pin = service_pin(config, p, service, NAT_SERVICE);
	if (pin) {
		to.local = pin->kind == NAT_SERVICE;
		to.addr = pin->addr;
		to.port = pin->port;
		to.backend = pin->backend;
		if (!to.local)
			nat_touch(p, NAT_FORWARD, pin, pin);
	} else {
		verdict = serve_new(config, p, service, &to);
		if (verdict)
			return verdict;
	}
	if (!to.local)
		return forward(skb, config, p, &to.addr);
	return service_translate(skb, p, NAT_SERVICE, service->id, to.backend, &to.addr, to.port, pin);
}

INLINE int from_lan(struct __sk_buff *skb, struct packet *p)
{
	struct config *config = config_get();
	int verdict, more;

	if (!config || parse(skb, p))
		return VERDICT_FORWARDED;	/* the kernel refuses what has no proper IP header */
	verdict = door(skb, config, p);
	if (verdict)
		return verdict;
	verdict = serve(skb, config, p);
	if (!verdict && !p->opaque && addr_equal(&p->dst, &family(config, p->v6)->node))
		verdict = masquerade_answer(skb, p);
	if (verdict && verdict != VERDICT_TRANSLATED)
		return verdict;
	more = deliver(skb, p);
	if (more)
		return more >= VERDICT_DROPS || !verdict ? more : verdict;
	/* A service may have its backend in the node's own network, and then it was translated to the node's address. */
	if (verdict && !addr_equal(&p->t.dst, &family(config, p->v6)->node))
		return verdict;
	more = host_enter(skb, config, p);
	return more >= VERDICT_DROPS || !verdict ? more : verdict;
}

/* CONTINUE for what the kernel takes for a frame without a tag. A tag with number 0 says a priority and no more (IEEE
 * 802.1Q, priority-tagged), and the kernel strips one after the other: one such is as none, two are nobody's honest work.
 * Any other number is another device's, which has its own rules.
 */
INLINE int tagged(struct __sk_buff *skb)
{
	__be16 inner;

	if (skb->vlan_present && skb->vlan_tci & VLAN_NUMBER)
		return VERDICT_FORWARDED;
	if (skb->protocol != be16(ETH_P_8021Q) && skb->protocol != be16(ETH_P_8021AD))
		return CONTINUE;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &inner, sizeof(inner)))
		return VERDICT_MALFORMED;
	return be16(inner) & VLAN_NUMBER ? VERDICT_FORWARDED : VERDICT_UNSUPPORTED;
}

int uplink_ingress(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(skb);
	int verdict;

	if (!p)
		return finish_blind();
	/* Another host's, which a bridge floods while it looks for a dead node's port: every node would serve it. */
	if (skb->pkt_type == PACKET_OTHERHOST)
		return finish(p, VERDICT_FORWARDED);
	verdict = tagged(skb);
	if (verdict)
		return finish(p, verdict);
	if (skb->protocol == be16(ETH_P_ARP))
		return finish(p, vip_arp(skb, p));
	if (skb->protocol == be16(ETH_P_IP) || skb->protocol == be16(ETH_P_IPV6))
		return finish(p, from_lan(skb, p));
	return finish(p, VERDICT_FORWARDED);
}
