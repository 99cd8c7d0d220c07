/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a policy says about a new flow of an endpoint.
 *
 * Rules are found under the peer's identity, under IDENTITY_ANY, and (towards addresses outside the cluster) under
 * every name-selector that the endpoint has learned for the address and that has not expired. Any deny wins, then any
 * redirect, then any allow. Nothing found: denied if the direction is enforced, else allowed by rule 0.
 */
#pragma once
#include "abi.h"
#include "compat.h"
#include "identity.h"
#include "maps.h"
#include "verdict.h"

struct decision {
	__u32 rule;
	__u8 action;		/* ACTION_*; 0 = no rule */
	__u8 named;		/* only a name-selector allowed it */
	__u8 audited;		/* allowed, but policies on trial would deny it ... */
	__u32 audit_rule;	/* ... by this rule */
};

INLINE __u8 precedence(__u8 action)
{
	return action == ACTION_DENY ? 3 : action == ACTION_REDIRECT_DNS ? 2 : action == ACTION_ALLOW ? 1 : 0;
}

INLINE void consult(struct policy_key *key, __u32 peer, __u8 named, struct decision *d)
{
	struct policy_rule *found;

	key->bits = POLICY_BITS_PORT;
	key->peer = peer;
	found = policy_get(key);
	if (!found || precedence(found->action) <= precedence(d->action))
		return;
	d->rule = found->rule;
	d->action = found->action;
	d->named = named;
}

INLINE void consult_names(struct policy_key *key, const struct addr *peer, __u64 now, struct decision *d)
{
#ifndef WITHOUT_NAMES	/* a program that judges the node alone: it learns no names, and its program stays small */
	struct fqdn_key fqdn_key = { .endpoint = key->endpoint, .addr = *peer };
	struct fqdn *names = fqdn_get(&fqdn_key);
	__u32 now_s = now / NANOSECONDS;
	__u32 i;

	if (!names)
		return;
	for (i = 0; i < FQDN_SELECTORS; i++) {
		struct fqdn_learned learned = names->learned[i];

		if (learned.selector && now_s < learned.expires_s)
			consult(key, learned.selector, 1, d);
	}
#endif
}

/* Everything that may have a word, in turn. */
INLINE void consult_all(struct policy_key *key, const struct who *who, const struct addr *peer, bool names, __u64 now,
			struct decision *d)
{
	d->rule = 0;
	d->action = 0;
	d->named = 0;
	consult(key, who->identity, 0, d);
	consult(key, IDENTITY_ANY, 0, d);
	if (names && who->outside)
		consult_names(key, peer, now, d);
}

/* VERDICT_FORWARDED, VERDICT_REDIRECTED_DNS, or a drop; d says by which rule. `port` is the one that was asked. */
INLINE int judge(struct endpoint *ep, __u8 direction, const struct who *who, const struct addr *peer, __u8 proto,
		 __be16 port, __u64 now, struct decision *d)
{
	struct policy_key key = { .endpoint = ep->id, .direction = direction, .proto = proto, .port = port };
	bool egress = direction == DIRECTION_EGRESS;
	struct decision trial = {};

	__builtin_memset(d, 0, sizeof(*d));
	if (direction == DIRECTION_INGRESS && who->identity == IDENTITY_HOST)
		return VERDICT_FORWARDED;	/* kubelet's probes: a node always reaches its own pods */
	consult_all(&key, who, peer, egress, now, d);
	if (d->action == ACTION_DENY || (d->action == ACTION_REDIRECT_DNS && !egress))
		return VERDICT_POLICY_DENIED;
	if (!d->action && ep->enforce & (egress ? ENFORCE_EGRESS : ENFORCE_INGRESS))
		return VERDICT_DEFAULT_DENY;
	if (ep->enforce & AUDIT) {
		key.direction += DIRECTION_AUDIT;
		consult_all(&key, who, peer, egress, now, &trial);
		d->audited = trial.action == ACTION_DENY ||
			     (!trial.action && ep->enforce & (egress ? AUDIT_EGRESS : AUDIT_INGRESS));
		d->audit_rule = trial.rule;
	}
	return d->action == ACTION_REDIRECT_DNS ? VERDICT_REDIRECTED_DNS : VERDICT_FORWARDED;
}
