/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a packet says, read once.
 *
 * An ICMP error is about another packet and quotes it: its tuple is that of the packet that would answer the quoted
 * one (RFC 792, RFC 4443 section 3), so every look-up that finds a connection finds it for its errors too.
 *
 * Not read, hence `opaque`: fragments of either kind (only the first has ports, and letting it pass alone helps
 * nobody), IPv4 options, IPv6 extension headers, protocols without ports. For pods and services opaque means dropped.
 * The node's own kernel takes them, so who judges what is for it reads on (parse_opaque).
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "verdict.h"

#define ICMP4_REPLY		0
#define ICMP4_UNREACHABLE	3
#define ICMP4_ECHO		8
#define ICMP4_TIME_EXCEEDED	11
#define ICMP4_PARAMETER		12
#define ICMP6_UNREACHABLE	1
#define ICMP6_PARAMETER		4	/* 1..4 are the errors */
#define ICMP6_ECHO		128
#define ICMP6_REPLY		129

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct packet {
	struct tuple t;		/* of the connection; see above for ICMP errors */
	struct addr src, dst;	/* of the packet itself */
	__u64 now;
	__u32 ifindex;		/* of the device that we are attached to */
	__u32 from_device;	/* ifindex of the device by which it came; 0 = this node made it */
	__u32 l4;		/* offset of the transport header */
	__u32 quoted;		/* ICMP error: offset of the quoted IP header; else 0 */
	__u32 quoted_l4;
	__u32 opaque;		/* why there are no ports (a verdict); 0 = the tuple is whole */
	__u32 rule;		/* that allowed or denied it */
	int action;		/* what the kernel shall do unless the verdict is a drop */
	__u8 v6, proto, ttl;
	__u8 tcp;		/* TCP_* flags; 0 for other protocols */
	__u8 starts;		/* 0 = belongs to what exists or to nothing: ICMP errors, echo replies */
	__u8 direction;		/* DIRECTION_* in which a policy was asked; 0 = none was */
	__u8 first;		/* of its flow */
	__u8 audited;		/* a policy on trial would have denied it */
	__u8 translated;	/* its destination was a service's */
	__u8 flow_flags;	/* FLOW_* that its flow had; 0 = a new one */
	__u8 pad[2];
	__u32 ack, end;		/* TCP: what it acknowledges; the sequence number behind its last byte, FIN included */
	__u32 audit_rule;	/* which rule of it */
	__u32 peer;		/* identity that the policy was asked about */

	/* room for keys and values that would not fit the stack */
	struct tuple other;
	struct nat made;
	struct service_key service;
	struct flow_key flow;
	struct flow flow_made;
};

SCRATCH(struct packet, scratch);

/* A frame of which nothing is known but where and when. */
INLINE struct packet *packet_begin(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct packet *p = scratch.lookup(&zero);

	if (!p)
		return NULL;
	__builtin_memset(p, 0, sizeof(*p));
	p->now = bpf_ktime_get_ns();
	p->action = TC_ACT_OK;
	p->ifindex = skb->ifindex;
	p->from_device = skb->ingress_ifindex;
	return p;
}

struct l3 {
	struct addr src, dst;
	__u32 l4;		/* offset */
	__u32 opaque;
	__u16 payload;		/* bytes behind the IP header, as the header claims */
	__u8 proto, ttl;
	__u8 later;		/* a fragment that does not begin with the transport header */
};

/* The IP header at `offset`; a verdict if it cannot even be read. */
INLINE int parse_l3(struct __sk_buff *skb, __u32 offset, bool v6, struct l3 *l3)
{
	l3->opaque = 0;
	if (!v6) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return VERDICT_MALFORMED;
		addr_from_v4(&l3->src, ip.saddr);
		addr_from_v4(&l3->dst, ip.daddr);
		l3->l4 = offset + ip.ihl * 4;
		l3->proto = ip.protocol;
		l3->ttl = ip.ttl;
		l3->payload = be16(ip.tot_len) - ip.ihl * 4;
		l3->later = !!(ip.frag_off & be16(0x1fff));
		if (be16(ip.tot_len) < ip.ihl * 4)
			l3->opaque = VERDICT_MALFORMED;
		else if (ip.ihl != 5)
			l3->opaque = VERDICT_UNSUPPORTED;
		else if (ip.frag_off & be16(0x3fff))
			l3->opaque = VERDICT_FRAGMENT;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
			return VERDICT_MALFORMED;
		__builtin_memcpy(&l3->src, &ip.saddr, sizeof(l3->src));
		__builtin_memcpy(&l3->dst, &ip.daddr, sizeof(l3->dst));
		if (addr_v4(&l3->src) || addr_v4(&l3->dst))
			return VERDICT_MALFORMED;	/* else IPv6 could speak as IPv4 (RFC 4291 2.5.5.2: never on the wire) */
		l3->l4 = offset + sizeof(ip);
		l3->proto = ip.nexthdr;
		l3->ttl = ip.hop_limit;
		l3->payload = be16(ip.payload_len);
		if (ip.nexthdr == IPPROTO_FRAGMENT)
			l3->opaque = VERDICT_FRAGMENT;
	}
	return CONTINUE;
}

/* Ports of the transport header at l3->l4 into `t`. Its first 8 bytes suffice, which is all that an error quotes. */
INLINE __u32 parse_ports(struct __sk_buff *skb, const struct l3 *l3, struct tuple *t, __u8 *icmp_type)
{
	__be16 head[4];

	if (bpf_skb_load_bytes(skb, l3->l4, head, sizeof(head)))
		return VERDICT_MALFORMED;
	t->sport = 0;
	t->dport = 0;
	*icmp_type = 0;
	switch (l3->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		t->sport = head[0];
		t->dport = head[1];
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((l3->proto == IPPROTO_ICMP) != addr_v4(&l3->src))
			return VERDICT_UNSUPPORTED;
		*icmp_type = *(__u8 *)head;
		if (*icmp_type == (l3->proto == IPPROTO_ICMP ? ICMP4_ECHO : ICMP6_ECHO))
			t->sport = head[2];
		else if (*icmp_type == (l3->proto == IPPROTO_ICMP ? ICMP4_REPLY : ICMP6_REPLY))
			t->dport = head[2];
		return 0;
	}
	return VERDICT_UNSUPPORTED;
}

INLINE bool icmp_is_echo(__u8 proto, __u8 type)
{
	return proto == IPPROTO_ICMP ? type == ICMP4_ECHO : type == ICMP6_ECHO;
}

INLINE bool icmp_is_reply(__u8 proto, __u8 type)
{
	return proto == IPPROTO_ICMP ? type == ICMP4_REPLY : type == ICMP6_REPLY;
}

INLINE bool icmp_is_error(__u8 proto, __u8 type)
{
	if (proto == IPPROTO_ICMP)
		return type == ICMP4_UNREACHABLE || type == ICMP4_TIME_EXCEEDED || type == ICMP4_PARAMETER;
	return type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER;
}

/* The tuple of an ICMP error: the quoted packet, turned round. */
INLINE __u32 parse_quoted(struct __sk_buff *skb, struct packet *p)
{
	struct tuple quoted = {};
	struct l3 l3 = {};
	__u32 opaque;
	__u8 type;

	p->quoted = p->l4 + 8;
	if (parse_l3(skb, p->quoted, p->v6, &l3))
		return VERDICT_MALFORMED;
	if (l3.opaque)
		return l3.opaque;
	opaque = parse_ports(skb, &l3, &quoted, &type);
	if (opaque)
		return opaque;
	if ((l3.proto == IPPROTO_ICMP || l3.proto == IPPROTO_ICMPV6) &&
	    !icmp_is_echo(l3.proto, type) && !icmp_is_reply(l3.proto, type))
		return VERDICT_UNSUPPORTED;
	if (!addr_equal(&l3.src, &p->dst))
		return VERDICT_MALFORMED;	/* an error goes to who sent the quoted packet and nowhere else */
	p->quoted_l4 = l3.l4;
	p->t.src = l3.dst;
	p->t.dst = l3.src;
	p->t.sport = quoted.dport;
	p->t.dport = quoted.sport;
	p->t.proto = l3.proto;
	return 0;
}

/* Of the TCP header, what follows the ports (RFC 9293 section 3.1). */
struct tcp_rest {
	__be32 seq, ack;
	__u8 offset, flags;
} __attribute__((packed));

INLINE __u32 parse_l4(struct __sk_buff *skb, struct packet *p, const struct l3 *l3)
{
	__u32 need = l3->proto == IPPROTO_TCP ? 20 : 8;
	__u32 opaque;
	__u8 type;

	if (l3->payload < need)
		return VERDICT_MALFORMED;
	opaque = parse_ports(skb, l3, &p->t, &type);
	if (opaque)
		return opaque;
	p->starts = 1;
	if (l3->proto == IPPROTO_TCP) {
		struct tcp_rest rest;

		if (bpf_skb_load_bytes(skb, l3->l4 + 4, &rest, sizeof(rest)))
			return VERDICT_MALFORMED;
		p->tcp = rest.flags;
		p->ack = be32(rest.ack);
		p->end = be32(rest.seq) + l3->payload - (rest.offset >> 4) * 4 + !!(rest.flags & TCP_FIN);
	} else if (l3->proto == IPPROTO_ICMP || l3->proto == IPPROTO_ICMPV6) {
		p->starts = icmp_is_echo(l3->proto, type);
		if (icmp_is_error(l3->proto, type))
			return parse_quoted(skb, p);
		if (!p->starts && !icmp_is_reply(l3->proto, type))
			return VERDICT_UNSUPPORTED;
	}
	return 0;
}

/* skb is IPv4 or IPv6 by its ethertype. CONTINUE with p filled (look at p->opaque before p->t), or a drop. */
INLINE int parse(struct __sk_buff *skb, struct packet *p)
{
	struct l3 l3 = {};

	p->v6 = skb->protocol == be16(ETH_P_IPV6);
	if (parse_l3(skb, ETH_HLEN, p->v6, &l3))
		return VERDICT_MALFORMED;
	p->src = l3.src;
	p->dst = l3.dst;
	p->l4 = l3.l4;
	p->proto = l3.proto;
	p->ttl = l3.ttl;
	p->t.src = l3.src;
	p->t.dst = l3.dst;
	p->t.proto = l3.proto;
	p->opaque = l3.opaque ? l3.opaque : parse_l4(skb, p, &l3);
	return CONTINUE;
}

#define EXTENSIONS 6		/* IPv6 extension headers that are read: as many as RFC 8200 4.1 has in one packet */

/* The start of an IPv6 extension header. A fragment header is 8 bytes long, the others say how many more words of 8. */
struct extension {
	__u8 next, length;
	__be16 fragment;
};

/* Behind IPv6 extension headers. CONTINUE with l3 where they end, or MALFORMED, UNSUPPORTED if there are more. */
INLINE int parse_extensions(struct __sk_buff *skb, struct l3 *l3)
{
	struct extension header;
	__u32 i, size;

	LOOP for (i = 0; i <= EXTENSIONS; i++) {
		if (l3->later || (l3->proto != IPPROTO_HOPOPTS && l3->proto != IPPROTO_ROUTING &&
				  l3->proto != IPPROTO_DSTOPTS && l3->proto != IPPROTO_FRAGMENT))
			return CONTINUE;
		if (bpf_skb_load_bytes(skb, l3->l4, &header, sizeof(header)))
			return VERDICT_MALFORMED;
		size = l3->proto == IPPROTO_FRAGMENT ? 8 : (header.length + 1) * 8;
		if (l3->payload < size)
			return VERDICT_MALFORMED;
		l3->later = l3->proto == IPPROTO_FRAGMENT && header.fragment & be16(0xfff8);
		l3->proto = header.next;
		l3->l4 += size;
		l3->payload -= size;
	}
	return VERDICT_UNSUPPORTED;
}

/* Of an opaque packet what its receiver will read: p->t and p->tcp as of any other. Later fragments, which are nothing
 * without the first, and protocols that have no ports have none in p->t. MALFORMED or UNSUPPORTED if the receiver might
 * read what is not read here.
 */
INLINE int parse_opaque(struct __sk_buff *skb, struct packet *p)
{
	struct l3 l3 = {};
	int verdict;

	verdict = parse_l3(skb, ETH_HLEN, p->v6, &l3);
	if (!verdict && p->v6)
		verdict = parse_extensions(skb, &l3);
	if (verdict)
		return verdict;
	p->l4 = l3.l4;
	p->proto = l3.proto;
	p->t.proto = l3.proto;
	if (!l3.later && !parse_l4(skb, p, &l3))
		return CONTINUE;
	if (!l3.later && (l3.proto == IPPROTO_TCP || l3.proto == IPPROTO_UDP || l3.proto == IPPROTO_SCTP))
		return VERDICT_MALFORMED;	/* its ports may be there, but not all of its header (RFC 1858) */
	p->t.sport = 0;
	p->t.dport = 0;
	p->quoted = 0;
	p->starts = 1;
	return CONTINUE;
}
