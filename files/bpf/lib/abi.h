/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Every structure and constant that programs share with Python; nothing else lives here.
 * daemons/src/netstack/kernel/layout.py mirrors it, tests/bpf/test_abi.py compares offset by offset.
 *
 * Addresses are 16 bytes in network order, IPv4 as v4-mapped (::ffff:a.b.c.d). Ports and ICMP ids are in network
 * order (be16). Everything else is in host order. Instants are nanoseconds of CLOCK_MONOTONIC (bpf_ktime_get_ns)
 * unless the name ends in _s. Padding is explicit and zero: map keys are compared as bytes.
 */
#pragma once

struct addr {
	__be32 w[4];
};

/* ---- config[0], written by the agent: who this node is ---- */

struct family_config {
	struct addr node;	/* this node's address; :: = the node has no such family */
	struct addr pod_net;	/* this node's PodCIDR ... */
	__u32 pod_net_bits;	/* ... and its length in 128 bits (IPv4 /24 = 120) */
	__u32 pad;
};

struct config {
	struct family_config v4, v6;
	__u32 uplink;		/* ifindex towards the other nodes */
	__u32 generation;	/* of the policy; flows of another generation are judged again */
	__u32 host;		/* 1 = policies select this node: HOST_ENDPOINT is in `endpoints` under its address */
	__u32 unfinished;	/* 1 = what judges flows is being written, and the generation will be another: for the agent */
};

#define HOST_ENDPOINT	0xffffffff	/* id of the node itself; pods' count from 1 */

/* ---- services and their backends, written by the agent ---- */

#define SCOPE_CLUSTER	0	/* traffic that starts on this node: sockets and pods */
#define SCOPE_WORLD	1	/* traffic that arrives at the uplink */

/* A node port has the address ::, whatever address of whatever node is asked.
 * Port 0 with protocol 0 stands for the address itself (the value is all zero): nothing but its listed ports exists,
 * so what asks for another port is dropped, never routed.
 */
struct service_key {
	struct addr addr;
	__be16 port;
	__u8 proto;		/* IPPROTO_* */
	__u8 scope;		/* SCOPE_* */
};

/* A service owns slots[first .. first + slots): Maglev order, the same on every node. A change writes a new region
 * first and then this one value, so a service changes at once or not at all.
 */
struct service {
	__u32 id;
	__u32 first;
	__u32 slots;		/* 0 = no backend: refused */
	__u32 affinity_s;	/* not 0 = a client's connections take one backend, at least so long */
	__u16 flags;		/* none yet: 0 */
	__u16 backends;		/* how many distinct backends the slots hold */
};

/* slots: index -> backend id; 0 is no backend. backends: id -> where it is. A backend that leaves the slots but stays
 * here keeps its established connections; one that leaves both loses them.
 */
#define BACKEND_SILENT	1	/* serves nobody now: a connection may wait for it, nothing else does */

struct backend {
	struct addr addr;
	struct addr node;	/* the node that hosts it; :: = outside the cluster */
	__be16 port;
	__u8 flags;		/* BACKEND_* */
	__u8 pad;
};

/* ---- translations, written by the programs ---- */

/* As the packet is before it is translated. ICMP echo: the id is the port of the side that asked, the other port is 0.
 * An ICMP error stands for the packet that would answer the one it quotes.
 */
struct tuple {
	struct addr src, dst;
	__be16 sport, dport;
	__u8 proto;
	__u8 pad[3];
};

#define NAT_SERVICE	1	/* LAN -> service: destination becomes addr:port, a backend on this node */
#define NAT_FORWARD	2	/* LAN -> service: goes on unchanged to the node addr, which translates it */
#define NAT_REPLY	3	/* backend -> LAN: source becomes addr:port, the service's */
#define NAT_POD		4	/* pod -> service: destination becomes addr:port, a backend */
#define NAT_POD_REPLY	5	/* backend -> pod: source becomes addr:port, the service's */
#define NAT_SOURCE	6	/* pod -> LAN: source becomes addr:port, this node's */
#define NAT_SOURCE_REPLY 7	/* LAN -> node: destination becomes addr:port, the pod's */

#define NAT_SEEN	1	/* a packet came this way */
#define NAT_FIN		2	/* FIN came this way; RST of a pod of this node counts for both ways */
#define NAT_ACKED	4	/* and a packet that came this way acknowledged the FIN of the other */

struct nat {
	__u64 deadline;
	struct addr addr;
	__be16 port;
	__u8 kind;		/* NAT_* above */
	__u8 flags;
	__u32 service;		/* id; 0 for masquerade */
	__u32 backend;		/* id; 0 for masquerade */
	__u32 end;		/* TCP: the sequence number behind the FIN that came this way */
	__be16 asker;		/* to a service: what the asker's port becomes; its answer: what it was. 0 = as it is */
	__u8 pad[6];
};

/* What a socket was told to talk to -> what it believes to talk to (recvmsg, getpeername). */
struct socket_peer {
	__u64 cookie;
	struct addr addr;
	__be16 port;
	__u8 pad[6];
};

struct socket_origin {
	struct addr addr;
	__be16 port;
	__u8 pad[2];
};

/* ---- endpoints, identities and policy, written by the agent ---- */

#define ENFORCE_INGRESS	1
#define ENFORCE_EGRESS	2
#define AUDIT		4	/* policies are on trial: what they would deny is said, not done ... */
#define AUDIT_INGRESS	8	/* ... and in these directions that is what no rule allows */
#define AUDIT_EGRESS	16
#define PROXIED		32	/* the DNS proxy asks servers in this endpoint's name */

struct endpoint {
	__u32 id;		/* never 0, never reused on a node */
	__u32 ifindex;		/* host-side veth */
	__u32 identity;
	__u32 enforce;		/* ENFORCE_*: what no rule allows is denied in these directions; the others: see above */
	__u8 mac[6];		/* the pod's */
	__u8 host_mac[6];	/* of the host-side veth, also the gateway's */
};

/* Numbers below 256 as Cilium's (pkg/identity/numericidentity.go). */
#define IDENTITY_ANY		0
#define IDENTITY_HOST		1
#define IDENTITY_WORLD		2
#define IDENTITY_UNMANAGED	3
#define IDENTITY_INIT		5
#define IDENTITY_REMOTE_NODE	6
#define IDENTITY_KUBE_APISERVER	7
#define IDENTITY_INGRESS	8
#define IDENTITY_NODES		0x02000000	/* .. END: nodes that address ranges in policies tell apart */
#define IDENTITY_NODES_END	0x03000000
#define IDENTITY_PODS		0x40000000	/* .. END: pods, by their labels */
#define IDENTITY_PODS_END	0x80000000

struct prefix {
	__u32 bits;		/* 0 .. 128; IPv4 /n = 96 + n */
	struct addr addr;
};

/* Absent = IDENTITY_WORLD. Every pod, PodCIDR and address of every node has an entry with its node. */
struct identity {
	__u32 identity;
	__u32 flags;		/* none yet: 0 */
	struct addr node;	/* owner of a cluster address; :: = outside the cluster */
};

#define DIRECTION_INGRESS	1
#define DIRECTION_EGRESS	2
#define DIRECTION_AUDIT		2	/* added: what the policies on trial and all others say together */

#define ACTION_ALLOW		1
#define ACTION_DENY		2
#define ACTION_REDIRECT_DNS	3

/* Longest prefix; endpoint, peer and direction always count in full, so bits is 72 (any protocol), 80 (any port)
 * or 80 + length of the port's prefix. ICMP: the type is the port.
 * The programs look up the peer's identity, IDENTITY_ANY, and each unexpired name-selector of the address. Of what
 * these find any deny wins, then any redirect, then any allow. Within one peer the longest prefix decides alone:
 * who writes must not leave an allow inside a wider deny of the same peer.
 */
#define POLICY_BITS_ANY		72
#define POLICY_BITS_PROTO	80
#define POLICY_BITS_PORT	96

struct policy_key {
	__u32 bits;
	__u32 endpoint;
	__u32 peer;		/* identity, name-selector, or IDENTITY_ANY: one space of numbers */
	__u8 direction;		/* DIRECTION_*, + DIRECTION_AUDIT */
	__u8 proto;
	__be16 port;		/* the port that was asked: the peer's for egress, the pod's own for ingress */
};

struct policy_rule {
	__u32 rule;		/* the agent's number for (object, rule) */
	__u8 action;		/* ACTION_* */
	__u8 pad[3];
};

/* ---- names, written by dns ---- */

#define FQDN_SELECTORS	8

struct fqdn_key {
	__u32 endpoint;
	struct addr addr;
};

struct fqdn_learned {
	__u32 selector;		/* 0 = free */
	__u32 expires_s;	/* second of CLOCK_MONOTONIC from which on it counts no more */
};

struct fqdn {
	struct fqdn_learned learned[FQDN_SELECTORS];
};

/* fqdn_use: struct fqdn_key -> __u64 instant of the last packet of a flow that a name allowed; exact to a second. */

/* ---- conntrack: the agent gives each endpoint id a table, in which the programs write ---- */

struct flow_key {
	__u32 endpoint;
	struct addr peer;	/* after service translation */
	__be16 peer_port;
	__be16 local_port;
	__u8 proto;
	__u8 pad[3];
};

#define FLOW_REPLIED	1	/* a packet went against the flow's direction */
#define FLOW_FIN	2	/* FIN went in the flow's direction; the endpoint's RST counts for both */
#define FLOW_FIN_REPLY	4	/* FIN went against it */
#define FLOW_HOST	8	/* the peer is this node itself, known by the door and not by address */
#define FLOW_REDIRECT	16	/* goes to the DNS proxy; answers come from this node only */
#define FLOW_NAMED	32	/* a name-selector allowed it: fqdn_use is kept */
#define FLOW_SERVICE	64	/* the endpoint asked a service's address, packet by packet: answers bear it again */
#define FLOW_PROXY	128	/* this node's proxy has asked in a pod's name: as long as it does, answers are its own */

struct flow {
	__u64 deadline;		/* past = absent */
	__u32 generation;
	__u32 rule;		/* of the policy_rule that allowed it; 0 = nothing selects that direction */
	__u8 direction;		/* DIRECTION_* of the first packet, seen from the endpoint */
	__u8 flags;		/* FLOW_* */
	__u8 pad[2];
	__u32 end;		/* TCP: the sequence number behind the endpoint's FIN */
};

/* ---- events, written by the programs, drained by the observer ---- */

/* A drop, or the first packet of a flow. Addresses and ports as they were judged: a service's backend, not the
 * service. Of an ICMP error as of the packet that would answer the one it quotes.
 */
struct event {
	__u64 at;
	struct addr src, dst;	/* :: = no IP header was read */
	__be16 sport, dport;
	__u8 proto;
	__u8 verdict;		/* lib/verdict.h */
	__u8 direction;		/* DIRECTION_* of the packet seen from the endpoint; 0 = no policy was asked */
	__u8 tcp;		/* its flags */
	__u32 endpoint;		/* whose policy was asked */
	__u32 peer;		/* identity; IDENTITY_ANY = not asked for */
	__u32 rule;		/* of the policy_rule that decided; 0 = none did */
	__u32 ifindex;		/* of the device whose program saw it */
	__u32 repeats;		/* packets like this one that were not told since the last that was */
	__u32 pad;
};

#define EVENT_REPEAT	1000000000	/* what is like the last one is told once in this time */
#define EVENT_RATE	200		/* events a second that may be told of one device ... */
#define EVENT_BURST	2000		/* ... and how many it may save up */

struct event_key {
	struct addr peer;
	__u32 endpoint;
	__u32 ifindex;
	__be16 port;
	__u8 proto;
	__u8 verdict;
	__u8 direction;
	__u8 pad[3];
};

struct event_seen {
	__u64 at;		/* when the last one was told */
	__u32 repeats;		/* since then */
	__u32 pad;
};

/* event_budget: ifindex -> what may still be told of it; dns_budget: ... what it may still ask the DNS proxy;
 * heard_budget: ... what may still be told of the answers that it hears.
 */
struct budget {
	__u64 at;		/* when tokens were last earned */
	__u32 tokens;
	__u32 lost;		/* events that were not told (no token, or the observer does not keep up); questions dropped */
};

#define DNS_RATE	1000		/* questions by UDP and connections by TCP that a device may begin in a second ... */
#define DNS_BURST	500		/* ... and how many it may save up: far fewer than the proxy's socket holds */

/* ---- DNS answers that went past the proxy, drained by dns ---- */

#define HEARD_BYTES	1232		/* longest message that is told: what fits every path (DNS flag day 2020) */
#define HEARD_RATE	50		/* messages a second that may be told of one device ... */
#define HEARD_BURST	100		/* ... and how many it may save up */

struct heard {
	struct addr server;	/* a service's backend, not the service */
	__u32 endpoint;		/* who asked */
	__u32 length;		/* of the message; a record in the ring ends with it */
	__u8 message[HEARD_BYTES];
};

/* ---- LoadBalancer addresses, written by the announcer ---- */

struct vip_key {
	struct addr addr;
	__u32 ifindex;
};

/* Every allocated address has an entry on every node; deadline 0 = another node's. */
struct vip {
	__u64 deadline;		/* this node answers ARP while now < deadline */
	__u32 generation;
	__u8 mac[6];		/* what it answers */
	__u8 pad[6];
};

/* node_alive: struct addr of a node -> __u64 instant until which it is believed alive. */

/* ---- addresses, ports and marks fixed by design ---- */

#define GATEWAY_V4	0xa9fe0101	/* 169.254.1.1, the gateway that every pod sees */
#define PROXY_V4	0xa9fe0135	/* 169.254.1.53, where the DNS proxy listens */
#define PROXY_V6_FIRST	0xfd6e6574	/* fd6e:6574::53, the same for IPv6: its first 32 bits ... */
#define PROXY_V6_LAST	0x00000053	/* ... and its last; zeros between */
#define PROXY_PORT	53		/* on UDP and TCP */
#define PROXY_MARK	0x53000000	/* "to the proxy": ip rule fwmark 0x53000000/0xff000000 */
#define PROXY_OWN_MARK	0x35000000	/* of the proxy's sockets (netstack-dns.socket), and so of what they accept */

#define MASQUERADE_FIRST 49152	/* source ports for pods; the node's own end at 49151 */
#define MASQUERADE_SHARED 8192	/* any pod's; behind them those of one pod each: */
#define MASQUERADE_OWNERS 64
#define MASQUERADE_OWN	128

#define VERDICTS	256	/* size of counters: verdict (lib/verdict.h) -> packets */
