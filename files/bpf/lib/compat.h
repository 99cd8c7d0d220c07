/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The only header that knows which compiler reads us: bcc 0.26, which declares maps by its own macros and calls them
 * as methods (lib/maps.h), and has no helper newer than itself. Everything else is plain C for kernel 6.1 and later:
 * no subprograms, no bpf_loop; loops are bounded, large state lives in per-CPU scratch.
 */
#pragma once
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/in.h>

#define INLINE static __always_inline

/* Before a loop that shall stay one: the compiler would write it out. */
#define LOOP _Pragma("clang loop unroll(disable)")

/* Sizes come from the loader (kernel/layout.py, settings): one entry here keeps the compiler's own copy small. */
#define MAP(kind, key, value, name)		BPF_TABLE(kind, key, value, name, 1)
#define MAP_NO_PREALLOC(kind, key, value, name)	BPF_F_TABLE(kind, key, value, name, 1, BPF_F_NO_PREALLOC)

/* bcc wants pages; the loader gives bytes. */
#define RING(name)				BPF_RINGBUF_OUTPUT(name, 1)

/* Working memory of one program, not shared: programs that use it run with softirqs off, so never nested. */
#define SCRATCH(value, name)			BPF_TABLE("percpu_array", __u32, value, name, 1)

/* bcc 0.26 declares it without the parameters that it has had since it exists. */
static __attribute__((unused)) long (*redirect_neigh)(__u32, struct bpf_redir_neigh *, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

#define be16(x) ((__be16)__builtin_bswap16(x))
#define be32(x) ((__be32)__builtin_bswap32(x))
#define NANOSECONDS 1000000000ULL
