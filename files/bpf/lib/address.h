/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * 16-byte addresses: both families are compared, matched and kept by the same code.
 */
#pragma once
#include "abi.h"
#include "compat.h"

INLINE bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

INLINE bool addr_none(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

INLINE bool addr_v4(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == be32(0xffff);
}

INLINE void addr_from_v4(struct addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = be32(0xffff);
	a->w[3] = v4;
}

/* Multicast of either family, or the IPv4 broadcast. */
INLINE bool addr_many(const struct addr *a)
{
	if (addr_v4(a))
		return (a->w[3] & be32(0xf0000000)) == be32(0xe0000000) || a->w[3] == be32(0xffffffff);
	return (a->w[0] & be32(0xff000000)) == be32(0xff000000);
}

/* fe80::/10 (RFC 4291 2.5.6): whose it is depends on the device, and it is never routed. */
INLINE bool addr_link_local(const struct addr *a)
{
	return (a->w[0] & be32(0xffc00000)) == be32(0xfe800000);
}

/* 127.0.0.0/8 is never on a wire (RFC 1122 3.2.1.3 g). With route_localnet, which kube-proxy sets for all devices and
 * nobody sets back, the kernel takes it from there all the same; ::1 it never does.
 */
INLINE bool addr_loopback(const struct addr *a)
{
	return addr_v4(a) && (a->w[3] & be32(0xff000000)) == be32(0x7f000000);
}

/* What pods have as their gateway: a next hop, at which nobody is. */
INLINE bool addr_gateway(const struct addr *a)
{
	return addr_v4(a) && a->w[3] == be32(GATEWAY_V4);
}

/* `bits` (0 = no network at all) counts as in struct prefix. */
INLINE bool addr_within(const struct addr *a, const struct addr *net, __u32 bits)
{
	__u32 i, rest = bits;

	if (!bits)
		return false;
#pragma unroll
	for (i = 0; i < 4; i++) {
		__u32 n = rest > 32 ? 32 : rest;
		__u32 mask = n ? 0xffffffffU << (32 - n) : 0;

		if ((a->w[i] ^ net->w[i]) & be32(mask))
			return false;
		rest -= n;
	}
	return true;
}
