/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Who is behind an address, and whether it came in by its own door.
 *
 * An address proves nothing by itself: a pod's comes from its own veth, a remote pod's or node's from the uplink (whose
 * program has seen by which neighbour: lib/neighbour.h), this node's own from no device at all. Through any other door
 * it is forged. Everything that is not the cluster's is WORLD or a prefix that some policy names, by whatever door.
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "maps.h"
#include "verdict.h"

struct who {
	__u32 identity;
	__u32 outside;		/* not an address of the cluster */
	struct addr node;	/* whose it is; :: = outside */
};

/* By no entry longer than `bits`. */
INLINE void identify_within(const struct addr *addr, __u32 bits, struct who *who)
{
	struct prefix key = { .bits = bits, .addr = *addr };
	struct identity *known;

	who->identity = IDENTITY_WORLD;
	who->outside = 1;
	__builtin_memset(&who->node, 0, sizeof(who->node));
	if (addr_gateway(addr)) {
		who->identity = IDENTITY_HOST;
		who->outside = 0;
		return;
	}
	known = identity_get(&key);
	if (!known || known->identity == IDENTITY_ANY)
		return;
	who->identity = known->identity;
	who->outside = addr_none(&known->node);
	who->node = known->node;
}

INLINE void identify(const struct addr *addr, struct who *who)
{
	identify_within(addr, 128, who);
}

INLINE struct family_config *family(struct config *config, bool v6)
{
	return v6 ? &config->v6 : &config->v4;
}

/* Who sent this packet towards a pod by the device `door`: CONTINUE, or SPOOFED. No device: this node itself, whatever
 * address it uses; but with the address of a pod of its own it is the DNS proxy that asks for that pod, and no more than it.
 */
INLINE int identify_at_door(struct config *config, bool v6, struct addr *src, __u32 door, struct who *who)
{
	struct endpoint *local;

	identify(src, who);
	if (!door) {
		local = who->identity == IDENTITY_HOST || who->outside ? NULL : endpoint_get(src);
		if (!local || local->id == HOST_ENDPOINT) {
			who->identity = IDENTITY_HOST;
			who->outside = 0;
		}
		return CONTINUE;
	}
	if (who->outside)
		return CONTINUE;
	if (!addr_equal(&who->node, &family(config, v6)->node))
		return door == config->uplink ? CONTINUE : VERDICT_SPOOFED;
	local = endpoint_get(src);
	return local && local->ifindex == door ? CONTINUE : VERDICT_SPOOFED;
}
