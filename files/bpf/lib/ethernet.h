/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * MAC addresses: 6 bytes as they are on the wire.
 */
#pragma once
#include "compat.h"

INLINE bool mac_equal(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

INLINE bool mac_none(const __u8 *a)
{
	return !(a[0] | a[1] | a[2] | a[3] | a[4] | a[5]);
}
