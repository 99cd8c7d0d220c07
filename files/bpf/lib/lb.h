/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Services: is this address one, and which backend serves this connection.
 */
#pragma once
#include "abi.h"
#include "address.h"
#include "compat.h"
#include "identity.h"
#include "maps.h"

#define PROBES 16	/* slots tried before a backend on a node believed dead is taken after all */

INLINE bool is_node(struct config *config, bool v6, const struct addr *addr)
{
	struct who who;

	if (addr_equal(addr, &family(config, v6)->node))
		return true;
	identify(addr, &who);
	return (who.identity >= IDENTITY_NODES && who.identity < IDENTITY_NODES_END) ||
	       who.identity == IDENTITY_REMOTE_NODE || (who.identity == IDENTITY_KUBE_APISERVER && !who.outside) ||
	       (who.identity == IDENTITY_HOST && !addr_none(&who.node));
}

/* The service that owns this address and port in this scope, node ports included. May be NULL. */
INLINE struct service *service_find(struct config *config, struct service_key *key, const struct addr *addr,
				    __be16 port, __u8 proto, __u8 scope)
{
	struct service *service;

	key->addr = *addr;
	key->port = port;
	key->proto = proto;
	key->scope = scope;
	if (!proto || !port || addr_none(addr))
		return NULL;	/* those keys are the address itself, and a port of every node */
	service = service_get(key);
	if (service)
		return service;
	__builtin_memset(&key->addr, 0, sizeof(key->addr));
	service = service_get(key);	/* hardly ever: asked before the trie is */
	return service && is_node(config, !addr_v4(addr), addr) ? service : NULL;
}

/* Nothing but its service ports exists at this address. */
INLINE bool service_address(struct service_key *key, const struct addr *addr, __u8 scope)
{
	key->addr = *addr;
	key->port = 0;
	key->proto = 0;
	key->scope = scope;
	return service_get(key);
}

/* Dead only by evidence: its deadline is past while our own, which the same announcer keeps, is not. */
INLINE bool node_dead(struct config *config, bool v6, struct addr *node, __u64 now)
{
	__u64 *deadline = node_alive_get(node), *ours;

	if (!deadline || now < *deadline)
		return false;
	ours = node_alive_get(&family(config, v6)->node);
	return ours && now < *ours;
}

/* The backend for `hash`; its id in *id. NULL when the service has none. */
INLINE struct backend *backend_pick(struct config *config, struct service *service, bool v6, __u32 hash, __u64 now,
				    __u32 *id)
{
	struct backend *backend, *first = NULL;
	__u32 i, slots = service->slots, base = service->first;

	if (!slots)
		return NULL;
	LOOP for (i = 0; i < PROBES; i++) {
		__u32 candidate = slot_get(base + (hash + i) % slots);

		backend = candidate ? backend_get(candidate) : NULL;
		if (!backend)
			continue;
		if (!first) {
			first = backend;
			*id = candidate;
		}
		if (!node_dead(config, v6, &backend->node, now)) {
			*id = candidate;
			return backend;
		}
	}
	return first;
}
