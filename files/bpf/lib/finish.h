/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The one exit: every packet that a program has seen is counted once, and a drop is a drop whatever was prepared.
 */
#pragma once
#include "compat.h"
#include "maps.h"
#include "verdict.h"

INLINE int finish(int verdict, int action)
{
	count(verdict);
	return verdict >= VERDICT_DROPS ? TC_ACT_SHOT : action;
}
