/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a device may cost others: a bucket of tokens, so many a second and so many saved up. Whoever floods spends its own.
 */
#pragma once
#include "abi.h"
#include "compat.h"

/* Take one, if there is one. CPUs that race for it may lose or save a few. */
INLINE bool budget_spend(struct budget *budget, __u64 now, __u32 rate, __u32 burst)
{
	__u64 earned = now > budget->at ? (now - budget->at) / (NANOSECONDS / rate) : 0;
	__u64 tokens = budget->tokens;

	if (earned) {
		tokens = tokens + earned > burst ? burst : tokens + earned;
		budget->at = now;
	}
	if (tokens)
		budget->tokens = tokens - 1;
	return tokens;
}
