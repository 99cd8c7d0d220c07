/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tc egress of the uplink: everything that this node sends to the LAN.
 *
 * Answers of backends here leave with the service's address, straight to the client; pods' own connections leave with
 * the node's. The node's own traffic and what goes between pods and nodes is not touched.
 */
#define WITHOUT_NAMES

#include "lib/abi.h"
#include "lib/address.h"
#include "lib/compat.h"
#include "lib/finish.h"
#include "lib/host.h"
#include "lib/identity.h"
#include "lib/maps.h"
#include "lib/masquerade.h"
#include "lib/parse.h"
#include "lib/service.h"

INLINE int to_lan(struct __sk_buff *skb, struct packet *p)
{
	struct config *config = config_get();
	struct family_config *own;
	int verdict = CONTINUE, judged;

	if (!config || parse(skb, p))
		return VERDICT_FORWARDED;
	own = family(config, p->v6);
	judged = host_leave(skb, config, p);
	if (judged >= VERDICT_DROPS)
		return judged;
	if (!p->opaque)
		verdict = service_answer(skb, p, NAT_REPLY);
	if (!verdict && addr_within(&p->src, &own->pod_net, own->pod_net_bits))
		verdict = masquerade(skb, config, p);
	return verdict ? verdict : VERDICT_FORWARDED;
}

int uplink_egress(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(skb);
	int verdict = VERDICT_FORWARDED;

	if (!p)
		return finish_blind();
	if (!skb->vlan_present && (skb->protocol == be16(ETH_P_IP) || skb->protocol == be16(ETH_P_IPV6)))
		verdict = to_lan(skb, p);
	return finish(p, verdict);
}
