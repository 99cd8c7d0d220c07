/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The one exit: every packet that a program has seen is counted once, a drop is a drop whatever was prepared, and what
 * an operator wants to know is told.
 */
#pragma once
#include "compat.h"
#include "events.h"
#include "maps.h"
#include "parse.h"
#include "verdict.h"

/* p->action is what the kernel shall do, unless the verdict is a drop. */
INLINE int finish(struct packet *p, int verdict)
{
	count(verdict);
	if (verdict >= VERDICT_DROPS && verdict != VERDICT_VIP_NOT_OWNED)	/* all nodes but one, at every question */
		event_of(p, verdict);
	else if (p->audited)
		event_of(p, VERDICT_AUDITED);
	else if (p->first)
		event_of(p, verdict);
	return verdict >= VERDICT_DROPS ? TC_ACT_SHOT : p->action;
}

/* No working memory, so nothing can be known of the packet. */
INLINE int finish_blind(void)
{
	count(VERDICT_UNSUPPORTED);
	return TC_ACT_SHOT;
}
