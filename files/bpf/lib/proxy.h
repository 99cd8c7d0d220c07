/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Hand a pod's DNS packet to the proxy's socket on this node, with the address that the pod asked left in place; and what
 * a server answers when the proxy asked it with the pod's address, so that the server's policy judged the pod.
 *
 * The mark makes the kernel deliver it here (ip rule fwmark, table `local default`), the assigned socket makes it the
 * proxy's. No socket, no packet: a redirect that finds nobody is a drop (the address asked may well be reachable).
 * bpf_sk_assign on 6.1 refuses listeners with SO_REUSEPORT, so the proxy's have none.
 *
 * All pods share the proxy's sockets, so what one may begin there is bounded here (dns_budget): a pod that asks faster
 * than the proxy reads would leave no room in the queue for the questions of others.
 */
#pragma once
#include "abi.h"
#include "budget.h"
#include "compat.h"
#include "maps.h"
#include "parse.h"
#include "verdict.h"

/* Only the proxy's own socket will do: another server of this node may be bound to 0.0.0.0:53 or [::]:53. */
INLINE bool proxy_socket(struct bpf_sock *sk, bool v6)
{
	__be32 own = sk->src_ip4, first = sk->src_ip6[0], last = sk->src_ip6[3];

	/* Read by now: else both families share one load at a computed offset, which the verifier refuses. */
	asm volatile("" : "+r"(own), "+r"(first));
	if (sk->src_port != PROXY_PORT)
		return false;
	if (!v6)
		return own == be32(PROXY_V4);
	return first == be32(PROXY_V6_FIRST) && !sk->src_ip6[1] && !sk->src_ip6[2] && last == be32(PROXY_V6_LAST);
}

/* Is it bound to the very address to which p goes? A server of this node may be bound to all. */
INLINE bool proxy_speaks(struct bpf_sock *sk, struct packet *p)
{
	__be32 own = sk->src_ip4, first = sk->src_ip6[0], last = sk->src_ip6[3];

	asm volatile("" : "+r"(own), "+r"(first));	/* as above */
	if (!p->v6)
		return own == p->t.dst.w[3];
	return first == p->t.dst.w[0] && sk->src_ip6[1] == p->t.dst.w[1] && sk->src_ip6[2] == p->t.dst.w[2] &&
	       last == p->t.dst.w[3];
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

INLINE bool proxy_affordable(struct packet *p)
{
	struct budget full = { .at = p->now, .tokens = DNS_BURST };
	struct budget *budget = dns_budget_get(&p->ifindex);

	if (!budget) {
		dns_budget_put(&p->ifindex, &full);
		budget = dns_budget_get(&p->ifindex);
		if (!budget)
			return false;
	}
	if (budget_spend(budget, p->now, DNS_RATE, DNS_BURST))
		return true;
	__sync_fetch_and_add(&budget->lost, 1);
	return false;
}

/* Did the proxy accept this connection, or another server of this node that listens at the address asked (a cache, the
 * cluster's DNS on the host's network)? Its end has that address in either case; but what the proxy's listener accepts
 * bears the listener's mark. A handshake bears none that could be read. While the listener has no mark, its daemon is of
 * a release that gave none, and every connection counts as its own.
 */
INLINE bool proxy_accepted(struct __sk_buff *skb, struct bpf_sock *sk, struct bpf_sock_tuple *proxy, __u32 size)
{
	struct bpf_sock *full = bpf_sk_fullsock(sk), *listener;
	bool marks;

	if (!full || full->mark == PROXY_OWN_MARK)
		return true;
	listener = bpf_skc_lookup_tcp(skb, proxy, size, BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return false;
	full = bpf_sk_fullsock(listener);
	marks = full && full->mark == PROXY_OWN_MARK;
	bpf_sk_release(listener);
	return !marks;
}

INLINE int proxy_tcp(struct __sk_buff *skb, struct packet *p, struct bpf_sock_tuple *asked,
		     struct bpf_sock_tuple *proxy, __u32 size)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, asked, size, BPF_F_CURRENT_NETNS, 0);

	if (sk) {	/* a connection that the proxy has accepted, with the server's address as its own */
		bool starts = p->tcp & TCP_SYN;

		if (sk->state != BPF_TCP_LISTEN && !(sk->state == BPF_TCP_TIME_WAIT && starts) &&
		    proxy_accepted(skb, sk, proxy, size))
			return proxy_assign(skb, sk);
		bpf_sk_release(sk);
	}
	if (!proxy_affordable(p))
		return VERDICT_DNS_FLOOD;
	sk = bpf_skc_lookup_tcp(skb, proxy, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return VERDICT_NO_PROXY;
	if (sk->state == BPF_TCP_LISTEN && proxy_socket(sk, p->v6))
		return proxy_assign(skb, sk);
	bpf_sk_release(sk);
	return VERDICT_NO_PROXY;
}

INLINE int proxy_udp(struct __sk_buff *skb, struct packet *p, struct bpf_sock_tuple *proxy, __u32 size)
{
	struct bpf_sock *sk;

	if (!proxy_affordable(p))
		return VERDICT_DNS_FLOOD;
	sk = bpf_sk_lookup_udp(skb, proxy, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return VERDICT_NO_PROXY;
	if (proxy_socket(sk, p->v6))
		return proxy_assign(skb, sk);
	bpf_sk_release(sk);
	return VERDICT_NO_PROXY;
}

/* The pod's packet as a socket of this node would know it: `asked` at the address asked, `proxy` at the proxy's. Returns
 * how much of them the family fills, by which the kernel tells families apart.
 */
INLINE __u32 proxy_tuples(struct packet *p, struct bpf_sock_tuple *asked, struct bpf_sock_tuple *proxy)
{
	if (p->v6) {
		__builtin_memcpy(asked->ipv6.saddr, p->t.src.w, sizeof(asked->ipv6.saddr));
		__builtin_memcpy(asked->ipv6.daddr, p->t.dst.w, sizeof(asked->ipv6.daddr));
		asked->ipv6.sport = p->t.sport;
		asked->ipv6.dport = p->t.dport;
		__builtin_memcpy(proxy->ipv6.saddr, p->t.src.w, sizeof(proxy->ipv6.saddr));
		proxy->ipv6.daddr[0] = be32(PROXY_V6_FIRST);
		proxy->ipv6.daddr[3] = be32(PROXY_V6_LAST);
		proxy->ipv6.sport = p->t.sport;
		proxy->ipv6.dport = be16(PROXY_PORT);
		return sizeof(asked->ipv6);
	}
	asked->ipv4.saddr = p->t.src.w[3];
	asked->ipv4.daddr = p->t.dst.w[3];
	asked->ipv4.sport = p->t.sport;
	asked->ipv4.dport = p->t.dport;
	proxy->ipv4.saddr = p->t.src.w[3];
	proxy->ipv4.daddr = be32(PROXY_V4);
	proxy->ipv4.sport = p->t.sport;
	proxy->ipv4.dport = be16(PROXY_PORT);
	return sizeof(asked->ipv4);
}

INLINE int proxy_redirect(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock_tuple asked = {}, proxy = {};
	__u32 size = proxy_tuples(p, &asked, &proxy);

	if (p->proto == IPPROTO_TCP)
		return proxy_tcp(skb, p, &asked, &proxy, size);
	if (p->proto == IPPROTO_UDP)
		return proxy_udp(skb, p, &proxy, size);
	return VERDICT_UNSUPPORTED;
}

/* Does the proxy ask in the name of this address? */
INLINE bool proxy_asks_for(struct addr *addr)
{
	struct endpoint *ep = endpoint_get(addr);

	return ep && ep->enforce & PROXIED;
}

INLINE int proxy_hears(struct __sk_buff *skb, struct packet *p, struct bpf_sock *sk)
{
	if (!sk)
		return CONTINUE;
	if (proxy_speaks(sk, p))
		return proxy_assign(skb, sk) == VERDICT_NO_PROXY ? VERDICT_NO_PROXY : VERDICT_REPLY;
	bpf_sk_release(sk);
	return CONTINUE;
}

/* Does p answer what the proxy asked with a pod's address? Nobody else on this node has a socket there. CONTINUE if not.
 * A connection in TIME_WAIT, which is no whole socket, still has to hear the server's FIN.
 */
INLINE int proxy_answered(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock_tuple asked = {}, unused = {};
	__u32 size = proxy_tuples(p, &asked, &unused);

	if (p->opaque || p->quoted)
		return CONTINUE;
	if (p->proto == IPPROTO_UDP)
		return proxy_hears(skb, p, bpf_sk_lookup_udp(skb, &asked, size, BPF_F_CURRENT_NETNS, 0));
	if (p->proto == IPPROTO_TCP)
		return proxy_hears(skb, p, bpf_skc_lookup_tcp(skb, &asked, size, BPF_F_CURRENT_NETNS, 0));
	return CONTINUE;
}
