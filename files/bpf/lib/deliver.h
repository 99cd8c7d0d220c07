/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To a pod of this node, past the host's stack: redirected to its host-side veth, at whose egress the pod's ingress
 * policy is judged as for all that comes to it.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "maps.h"
#include "parse.h"
#include "proxy.h"
#include "rewrite.h"
#include "verdict.h"

#define SMALL	1294	/* bytes of a frame that fits every device: IPv6's least MTU (RFC 8200 section 5) */

/* Would the kernel have something to say (time exceeded, fragmentation needed) before the pod has? */
INLINE bool needs_router(struct __sk_buff *skb, struct packet *p, __u32 ifindex)
{
	__u32 mtu = 0;

	return p->ttl <= 1 || (skb->len > SMALL && bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS));
}

/* FORWARDED if p->dst is a pod of this node, REPLY if p answers what the proxy asked in its name, CONTINUE if the kernel
 * shall route the packet, or a drop.
 */
INLINE int deliver(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *ep = endpoint_get(&p->dst);
	int verdict;

	if (!ep || ep->id == HOST_ENDPOINT)
		return CONTINUE;
	if (ep->enforce & PROXIED) {
		verdict = proxy_answered(skb, p);
		if (verdict)
			return verdict;
	}
	if (needs_router(skb, p, ep->ifindex))
		return CONTINUE;
	verdict = rewrite_ttl(skb, p);
	if (verdict)
		return verdict;
	if (bpf_skb_store_bytes(skb, 0, ep->mac, 2 * ETH_ALEN, 0))	/* the pod's, then the gateway's */
		return VERDICT_MALFORMED;
	p->action = bpf_redirect(ep->ifindex, 0);
	return VERDICT_FORWARDED;
}
