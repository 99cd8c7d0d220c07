/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Give a packet another source or destination, with every checksum that covers it.
 *
 * In an ICMP error the connection is the quoted packet's, turned round: another destination is another quoted source.
 * The quoted transport checksum is left alone: most of what it covers is not quoted, and nobody verifies it.
 */
#pragma once
#include "compat.h"
#include "parse.h"

#define TCP_CHECKSUM	16
#define UDP_CHECKSUM	6
#define ICMP_CHECKSUM	2
#define IP_CHECKSUM	10

/* The address field at `at` of an IP header at `l3`, and that header's own checksum. 0 or negative. */
INLINE int rewrite_l3(struct __sk_buff *skb, bool v6, __u32 l3, bool source, const struct addr *to, __s64 diff)
{
	struct addr addr = *to;

	if (v6)
		return bpf_skb_store_bytes(skb, l3 + (source ? 8 : 24), &addr, 16, 0);
	return bpf_l3_csum_replace(skb, l3 + IP_CHECKSUM, 0, diff, 0) |
	       bpf_skb_store_bytes(skb, l3 + (source ? 12 : 16), &addr.w[3], 4, 0);
}

/* One 16-bit field at `at` (a port or id), and the checksum at `checksum` that covers it. */
INLINE int rewrite_port(struct __sk_buff *skb, __u32 at, __u32 checksum, __u64 flags, __be16 from, __be16 to)
{
	if (from == to)
		return 0;
	return bpf_l4_csum_replace(skb, checksum, from, to, 2 | flags) | bpf_skb_store_bytes(skb, at, &to, 2, 0);
}

INLINE int rewrite_plain(struct __sk_buff *skb, struct packet *p, bool source, const struct addr *from,
			 const struct addr *to, __be16 from_port, __be16 to_port)
{
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	__u32 at = p->l4 + (source ? 0 : 2), checksum = p->l4 + TCP_CHECKSUM;
	__u64 flags = 0, pseudo = BPF_F_PSEUDO_HDR;

	switch (p->proto) {
	case IPPROTO_TCP:
		break;
	case IPPROTO_UDP:
		checksum = p->l4 + UDP_CHECKSUM;
		flags = BPF_F_MARK_MANGLED_0;	/* RFC 768: zero says that there is none */
		break;
	case IPPROTO_ICMP:
		pseudo = 0;			/* ICMPv4 has no pseudo header */
	case IPPROTO_ICMPV6:
		at = p->l4 + 4;
		checksum = p->l4 + ICMP_CHECKSUM;
		break;
	default:
		return -1;			/* SCTP: its CRC covers the ports, and no helper computes it */
	}
	if (pseudo && bpf_l4_csum_replace(skb, checksum, 0, diff, pseudo | flags))
		return -1;
	return rewrite_port(skb, at, checksum, flags, from_port, to_port) |
	       rewrite_l3(skb, p->v6, ETH_HLEN, source, to, diff);
}

/* The quoted packet's other end, and with `outer` the error's own address. */
INLINE int rewrite_quoted(struct __sk_buff *skb, struct packet *p, bool source, bool outer, const struct addr *from,
			  const struct addr *to, __be16 from_port, __be16 to_port)
{
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	__u32 at = p->quoted_l4 + (source ? 2 : 0), checksum = p->l4 + ICMP_CHECKSUM;

	if (p->t.proto == IPPROTO_ICMP || p->t.proto == IPPROTO_ICMPV6)
		at = p->quoted_l4 + 4;
	if (rewrite_port(skb, at, checksum, 0, from_port, to_port) ||
	    rewrite_l3(skb, p->v6, p->quoted, !source, to, diff))
		return -1;
	/* IPv4: the quoted address and its header checksum cancel out in the error's checksum. IPv6 has no header
	 * checksum, but a pseudo header.
	 */
	if (p->v6 && bpf_l4_csum_replace(skb, checksum, 0, diff, 0))
		return -1;
	if (!outer)
		return 0;
	if (p->v6 && bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR))
		return -1;
	return rewrite_l3(skb, p->v6, ETH_HLEN, source, to, diff);
}

/* 0, or negative: the packet is then half changed and must be dropped. Keys of the packet follow. */
INLINE int rewrite_source(struct __sk_buff *skb, struct packet *p, const struct addr *to, __be16 port)
{
	bool outer = addr_equal(&p->src, &p->t.src);	/* not if a router on the way reports the error */
	int failed;

	if (p->quoted)
		failed = rewrite_quoted(skb, p, true, outer, &p->t.src, to, p->t.sport, port);
	else
		failed = rewrite_plain(skb, p, true, &p->t.src, to, p->t.sport, port);
	if (outer)
		p->src = *to;
	p->t.src = *to;
	p->t.sport = port;
	return failed;
}

INLINE int rewrite_destination(struct __sk_buff *skb, struct packet *p, const struct addr *to, __be16 port)
{
	int failed;

	if (p->quoted)
		failed = rewrite_quoted(skb, p, false, true, &p->t.dst, to, p->t.dport, port);
	else
		failed = rewrite_plain(skb, p, false, &p->t.dst, to, p->t.dport, port);
	p->dst = *to;
	p->t.dst = *to;
	p->t.dport = port;
	return failed;
}

/* One hop less, as a router does. A drop when there is none left. */
INLINE int rewrite_ttl(struct __sk_buff *skb, struct packet *p)
{
	__u8 ttl = p->ttl - 1;

	if (p->ttl <= 1)
		return VERDICT_TTL_EXCEEDED;
	if (p->v6)
		return bpf_skb_store_bytes(skb, ETH_HLEN + 7, &ttl, 1, 0) ? VERDICT_MALFORMED : CONTINUE;
	/* the field shares a 16-bit word with the protocol */
	if (bpf_l3_csum_replace(skb, ETH_HLEN + IP_CHECKSUM, be16(p->ttl << 8 | p->proto), be16(ttl << 8 | p->proto), 2) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + 8, &ttl, 1, 0))
		return VERDICT_MALFORMED;
	return CONTINUE;
}
