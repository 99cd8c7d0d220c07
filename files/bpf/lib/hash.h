/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One number for a connection, the same on every node: it picks the backend.
 */
#pragma once
#include "abi.h"
#include "compat.h"

INLINE __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;	/* 2^64 / golden ratio */
	return hash ^ hash >> 32;
}

INLINE __u64 mix_addr(__u64 hash, const struct addr *a)
{
	hash = mix(hash, (__u64)a->w[0] << 32 | a->w[1]);
	return mix(hash, (__u64)a->w[2] << 32 | a->w[3]);
}

/* All connections of one client take one backend. */
INLINE __u32 client_hash(const struct addr *client)
{
	return mix(mix_addr(0, client), 0) >> 16;
}

INLINE __u32 tuple_hash(const struct tuple *t)
{
	__u64 hash = mix_addr(mix_addr(0, &t->src), &t->dst);

	hash = mix(hash, (__u64)t->sport << 32 | (__u32)t->dport << 16 | t->proto);
	return mix(hash, 0) >> 16;
}
