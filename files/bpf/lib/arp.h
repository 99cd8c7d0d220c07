/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * ARP for IPv4 over Ethernet (RFC 826): read a request, turn it into its answer where it stands.
 */
#pragma once
#include "compat.h"
#include "verdict.h"

#define ARP_REQUEST	1
#define ARP_REPLY	2

struct arp {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

struct arp_frame {
	__u8 to[6], from[6];
	__be16 ethertype;
	struct arp arp;
} __attribute__((packed));

/* CONTINUE with `frame` filled, or MALFORMED. */
INLINE int arp_parse(struct __sk_buff *skb, struct arp_frame *frame)
{
	if (bpf_skb_load_bytes(skb, 0, frame, sizeof(*frame)) ||
	    frame->arp.hardware != be16(1) || frame->arp.protocol != be16(ETH_P_IP) ||
	    frame->arp.hardware_len != 6 || frame->arp.protocol_len != 4)
		return VERDICT_MALFORMED;
	return CONTINUE;
}

INLINE __be32 arp_addr(const __u8 *field)
{
	__be32 addr;

	__builtin_memcpy(&addr, field, sizeof(addr));
	return addr;
}

/* "target is at mac", to whoever asked, out of the device by which the question came. */
INLINE int arp_answer(struct __sk_buff *skb, struct arp_frame *frame, const __u8 *mac, int *action)
{
	__u8 asked[4];

	__builtin_memcpy(asked, frame->arp.target, 4);
	__builtin_memcpy(frame->to, frame->arp.sender_mac, 6);
	__builtin_memcpy(frame->from, mac, 6);
	__builtin_memcpy(frame->arp.target_mac, frame->arp.sender_mac, 6);
	__builtin_memcpy(frame->arp.target, frame->arp.sender, 4);
	__builtin_memcpy(frame->arp.sender_mac, mac, 6);
	__builtin_memcpy(frame->arp.sender, asked, 4);
	frame->arp.operation = be16(ARP_REPLY);
	if (bpf_skb_store_bytes(skb, 0, frame, sizeof(*frame), 0))
		return VERDICT_MALFORMED;
	*action = bpf_redirect(skb->ifindex, 0);
	return VERDICT_ARP_ANSWERED;
}
