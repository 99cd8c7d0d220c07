/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The shared maps, a sentence each, and the few ways in which programs touch them.
 */
#pragma once
#include "abi.h"
#include "compat.h"

/* Who this node is. Absent until the agent wrote it: node is :: then, and no pod exists. */
MAP("array", __u32, struct config, config);

/* Service ports, and service addresses as such. */
MAP_NO_PREALLOC("hash", struct service_key, struct service, services);

/* One row of backend ids for all services, in Maglev order. */
MAP("array", __u32, __u32, slots);

/* Where a backend is. */
MAP_NO_PREALLOC("hash", __u32, struct backend, backends);

/* Translations of what the LAN asks services, both ways, and pins of what another node serves. */
MAP("lru_hash", struct tuple, struct nat, nat);

/* Translations of what pods ask services and the world, both ways: out of the reach of a flood from the LAN. */
MAP("lru_hash", struct tuple, struct nat, nat_pods);

/* What a socket believes to talk to. */
MAP("lru_hash", struct socket_peer, struct socket_origin, socket_revnat);

/* Pods of this node by address. */
MAP("hash", struct addr, struct endpoint, endpoints);

/* Who is behind an address. */
MAP_NO_PREALLOC("lpm_trie", struct prefix, struct identity, identities);

/* What an endpoint may do. */
MAP_NO_PREALLOC("lpm_trie", struct policy_key, struct policy_rule, policy);

/* Which names of its policy an endpoint has learned for an address. */
MAP_NO_PREALLOC("hash", struct fqdn_key, struct fqdn, fqdn);

/* When an address that was opened by name was last used. */
MAP("lru_hash", struct fqdn_key, __u64, fqdn_use);

/* One endpoint's flows that a policy has judged: what each table in conntrack is like. */
MAP("lru_hash", struct flow_key, struct flow, flows);

/* Each endpoint's own table of flows, which comes and goes with the endpoint: whoever floods evicts its own. */
MAP("hash_of_maps$flows", __u32, int, conntrack);

/* LoadBalancer addresses that are allocated, and until when they are ours. */
MAP("hash", struct vip_key, struct vip, vips);

/* Until when a node is believed alive. */
MAP("hash", struct addr, __u64, node_alive);

/* What the observer is told. */
RING(events);

/* What was told of late, and what was left out. */
MAP("lru_hash", struct event_key, struct event_seen, event_seen);

/* What may be told of a device. */
MAP("lru_hash", __u32, struct budget, event_budget);

/* What a device may ask the DNS proxy. */
MAP("lru_hash", __u32, struct budget, dns_budget);

/* DNS answers past the proxy. */
RING(heard);

/* What may be told of them. */
MAP("lru_hash", __u32, struct budget, heard_budget);

/* Packets by verdict. */
MAP("percpu_array", __u32, __u64, counters);

INLINE struct config *config_get(void)
{
	__u32 zero = 0;

	return config.lookup(&zero);
}

INLINE struct service *service_get(struct service_key *key)
{
	return services.lookup(key);
}

/* 0 = empty slot */
INLINE __u32 slot_get(__u32 index)
{
	__u32 *id = slots.lookup(&index);

	return id ? *id : 0;
}

INLINE struct backend *backend_get(__u32 id)
{
	return backends.lookup(&id);
}

/* Translations of any kind (NAT_*) that shares a table with `kind`. */
INLINE struct nat *nat_get(struct tuple *key, __u8 kind)
{
	return kind >= NAT_POD ? nat_pods.lookup(key) : nat.lookup(key);
}

/* 0, or negative if there is no room */
INLINE int nat_put(struct tuple *key, struct nat *value, __u8 kind)
{
	return kind >= NAT_POD ? nat_pods.update(key, value) : nat.update(key, value);
}

/* 0, or negative if another packet was first or there is no room */
INLINE int nat_claim(struct tuple *key, struct nat *value, __u8 kind)
{
	return kind >= NAT_POD ? nat_pods.insert(key, value) : nat.insert(key, value);
}

INLINE void nat_forget(struct tuple *key, __u8 kind)
{
	if (kind >= NAT_POD)
		nat_pods.delete(key);
	else
		nat.delete(key);
}

INLINE struct socket_origin *socket_origin_get(struct socket_peer *key)
{
	return socket_revnat.lookup(key);
}

INLINE int socket_origin_put(struct socket_peer *key, struct socket_origin *value)
{
	return socket_revnat.update(key, value);
}

INLINE struct endpoint *endpoint_get(struct addr *addr)
{
	return endpoints.lookup(addr);
}

INLINE struct identity *identity_get(struct prefix *key)
{
	return identities.lookup(key);
}

INLINE struct policy_rule *policy_get(struct policy_key *key)
{
	return policy.lookup(key);
}

INLINE struct fqdn *fqdn_get(struct fqdn_key *key)
{
	return fqdn.lookup(key);
}

INLINE __u64 *fqdn_use_get(struct fqdn_key *key)
{
	return fqdn_use.lookup(key);
}

INLINE void fqdn_use_put(struct fqdn_key *key, __u64 *now)
{
	fqdn_use.update(key, now);
}

/* NULL if the endpoint has none (yet): then it has no flows and can get none. */
INLINE void *flow_table(__u32 endpoint)
{
	return conntrack.lookup(&endpoint);
}

INLINE struct flow *flow_get(struct flow_key *key)
{
	void *table = flow_table(key->endpoint);

	return table ? bpf_map_lookup_elem(table, key) : NULL;
}

/* 0, or negative if there is no room */
INLINE int flow_put(struct flow_key *key, struct flow *value)
{
	void *table = flow_table(key->endpoint);

	return table ? bpf_map_update_elem(table, key, value, BPF_ANY) : -1;
}

INLINE void flow_forget(struct flow_key *key)
{
	void *table = flow_table(key->endpoint);

	if (table)
		bpf_map_delete_elem(table, key);
}

INLINE struct vip *vip_get(struct vip_key *key)
{
	return vips.lookup(key);
}

INLINE __u64 *node_alive_get(struct addr *node)
{
	return node_alive.lookup(node);
}

/* 0, or negative if the ring is full */
INLINE int event_put(struct event *event)
{
	return events.ringbuf_output(event, sizeof(*event), 0);
}

INLINE struct event_seen *event_seen_get(struct event_key *key)
{
	return event_seen.lookup(key);
}

INLINE void event_seen_put(struct event_key *key, struct event_seen *value)
{
	event_seen.update(key, value);
}

INLINE struct budget *event_budget_get(__u32 *ifindex)
{
	return event_budget.lookup(ifindex);
}

INLINE void event_budget_put(__u32 *ifindex, struct budget *value)
{
	event_budget.update(ifindex, value);
}

INLINE struct budget *dns_budget_get(__u32 *ifindex)
{
	return dns_budget.lookup(ifindex);
}

INLINE void dns_budget_put(__u32 *ifindex, struct budget *value)
{
	dns_budget.update(ifindex, value);
}

/* 0, or negative if the ring is full */
INLINE int heard_put(struct heard *record, __u32 size)
{
	return heard.ringbuf_output(record, size, 0);
}

INLINE struct budget *heard_budget_get(__u32 *ifindex)
{
	return heard_budget.lookup(ifindex);
}

INLINE void heard_budget_put(__u32 *ifindex, struct budget *value)
{
	heard_budget.update(ifindex, value);
}

INLINE void count(__u32 verdict)
{
	__u64 *packets = counters.lookup(&verdict);

	if (packets)
		*packets += 1;
}
