/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a device may cost others: a bucket of tokens, so many a second and so many saved up. Whoever floods spends its own.
 */
#pragma once
#include "abi.h"
#include "compat.h"

/* Take one, if there is one. CPUs that race for it may lose or save a few. What is not yet a whole token is not lost: who
 * comes a little faster than the rate would be given half of it.
 */
INLINE bool budget_spend(struct budget *budget, __u64 now, __u32 rate, __u32 burst)
{
	__u64 each = NANOSECONDS / rate, tokens = budget->tokens;
	__u64 earned = now > budget->at ? (now - budget->at) / each : 0;

	if (earned) {
		budget->at = tokens + earned < burst ? budget->at + earned * each : now;
		tokens = tokens + earned < burst ? tokens + earned : burst;
	}
	if (tokens)
		budget->tokens = tokens - 1;
	return tokens;
}
