/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What became of a packet: the numbers of daemons/src/netstack/core/verdict.py (tests/bpf/test_verdict.py compares).
 * A stage returns one of these, or CONTINUE when the next stage shall decide. From VERDICT_DROPS on it is a drop.
 */
#pragma once

#define CONTINUE		0	/* never leaves a program */

#define VERDICT_FORWARDED	1
#define VERDICT_REPLY		2
#define VERDICT_REDIRECTED_DNS	3
#define VERDICT_TRANSLATED	4
#define VERDICT_MASQUERADED	5
#define VERDICT_ARP_ANSWERED	6
#define VERDICT_AUDITED		7	/* forwarded; a policy on trial would have denied it */

#define VERDICT_DROPS		128
#define VERDICT_POLICY_DENIED	128	/* a deny rule */
#define VERDICT_DEFAULT_DENY	129	/* no rule allows it */
#define VERDICT_SPOOFED		130	/* the source cannot come through this door */
#define VERDICT_MALFORMED	131
#define VERDICT_UNSUPPORTED	132	/* ethertype, protocol, option or type that no stage understands */
#define VERDICT_NO_BACKEND	133
#define VERDICT_NO_PROXY	134	/* redirected, but nobody listens */
#define VERDICT_MAP_FULL	135
#define VERDICT_NO_PORT		136	/* no port was free: masqueraded towards this destination, or of an asker at a backend */
#define VERDICT_VIP_NOT_OWNED	137	/* ARP for an address that another node answers for */
#define VERDICT_TTL_EXCEEDED	138
#define VERDICT_FRAGMENT	139	/* ports are needed and not there */
#define VERDICT_NO_ENDPOINT	140	/* the address is no pod of this node */
#define VERDICT_NO_SERVICE	141	/* a service address, but not one of its ports */
#define VERDICT_NO_NEIGHBOUR	142	/* a cluster address from the LAN whose owner's MAC is not known yet */
#define VERDICT_DNS_FLOOD	143	/* more DNS questions than one device may ask at once */
