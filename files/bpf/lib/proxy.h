/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Hand a pod's DNS packet to the proxy's socket on this node, with the address that the pod asked left in place.
 *
 * The mark makes the kernel deliver it here (ip rule fwmark, table `local default`), the assigned socket makes it the
 * proxy's. No socket, no packet: a redirect that finds nobody is a drop (the address asked may well be reachable).
 * bpf_sk_assign on 6.1 refuses listeners with SO_REUSEPORT, so the proxy's have none.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "parse.h"
#include "verdict.h"

#define TUPLE_V4 sizeof(((struct bpf_sock_tuple *)0)->ipv4)

/* Only the proxy's own socket will do: another server of this node may be bound to 0.0.0.0:53. */
INLINE bool proxy_socket(struct bpf_sock *sk)
{
	return sk->src_ip4 == be32(PROXY_V4) && sk->src_port == PROXY_PORT;
}

INLINE int proxy_assign(struct __sk_buff *skb, struct bpf_sock *sk)
{
	long failed = bpf_sk_assign(skb, sk, 0);

	bpf_sk_release(sk);
	if (failed)
		return VERDICT_NO_PROXY;
	skb->mark = PROXY_MARK;
	return VERDICT_REDIRECTED_DNS;
}

INLINE int proxy_tcp(struct __sk_buff *skb, struct packet *p, struct bpf_sock_tuple *asked,
		     struct bpf_sock_tuple *proxy)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, asked, TUPLE_V4, BPF_F_CURRENT_NETNS, 0);

	if (sk) {	/* a connection that the proxy has accepted, with the server's address as its own */
		bool starts = p->tcp & TCP_SYN;

		if (sk->state != BPF_TCP_LISTEN && !(sk->state == BPF_TCP_TIME_WAIT && starts))
			return proxy_assign(skb, sk);
		bpf_sk_release(sk);
	}
	sk = bpf_skc_lookup_tcp(skb, proxy, TUPLE_V4, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return VERDICT_NO_PROXY;
	if (sk->state == BPF_TCP_LISTEN && proxy_socket(sk))
		return proxy_assign(skb, sk);
	bpf_sk_release(sk);
	return VERDICT_NO_PROXY;
}

INLINE int proxy_udp(struct __sk_buff *skb, struct bpf_sock_tuple *proxy)
{
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, proxy, TUPLE_V4, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return VERDICT_NO_PROXY;
	if (proxy_socket(sk))
		return proxy_assign(skb, sk);
	bpf_sk_release(sk);
	return VERDICT_NO_PROXY;
}

INLINE int proxy_redirect(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock_tuple asked = {}, proxy = {};

	if (p->v6)
		return VERDICT_NO_PROXY;	/* it listens on IPv4 only */
	asked.ipv4.saddr = p->t.src.w[3];
	asked.ipv4.daddr = p->t.dst.w[3];
	asked.ipv4.sport = p->t.sport;
	asked.ipv4.dport = p->t.dport;
	proxy.ipv4.saddr = p->t.src.w[3];
	proxy.ipv4.daddr = be32(PROXY_V4);
	proxy.ipv4.sport = p->t.sport;
	proxy.ipv4.dport = be16(PROXY_PORT);
	if (p->proto == IPPROTO_TCP)
		return proxy_tcp(skb, p, &asked, &proxy);
	if (p->proto == IPPROTO_UDP)
		return proxy_udp(skb, &proxy);
	return VERDICT_UNSUPPORTED;
}
