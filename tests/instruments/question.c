/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A prototype that no node runs: may this pod ask for this name, judged by a tc program instead of the DNS proxy.
 *
 * It shall never contradict the proxy (netstack.dns.message, names). Whatever is odd is therefore the proxy's: other
 * sections, compression, classes, a byte that no name has, a rule with a star inside a label. What the proxy drops
 * without an answer is odd too.
 *
 * Names are compared, not hashes of them: the table of a pod's names is a trie of names spelled backwards ("oi.x.www."),
 * so one look-up finds the longest suffix that any rule knows, and no other name can be found in its place. The length
 * bytes become dots, which no label may hold. Kept in place they would lie: "-" and the digits are lengths as well, and a
 * label that ends in such a byte and another name would end in that name.
 *
 * IPv4 alone: over IPv6 an answer needs a checksum, the judgement is the same.
 */
#include "../../files/bpf/lib/address.h"
#include "../../files/bpf/lib/compat.h"
#include "../../files/bpf/lib/verdict.h"

#define ALLOWED		1
#define REFUSED		2
#define PROXY		3	/* let it decide */

#define DNS_PORT	53
#define DNS_BYTES	1232	/* the longest question (MAX_QUERY) */
#define DNS_QR_OPCODE	0xf800
#define DNS_RD		0x0100
#define DNS_REFUSED	0x8085	/* QR, RA and the code */
#define DNS_OPT		41
#define DNS_IN		1
#define DNS_IXFR	251
#define DNS_AXFR	252
#define QUESTION_LEAST	5	/* the root's name, type and class */
#define LABEL_BYTES	63
#define NAME_BYTES	252	/* of text; a trie's key has 256 bytes at most (kernel/bpf/lpm_trie.c), 4 are the scope */
#define TEXT_BYTES	(NAME_BYTES + 8)	/* name, its end, type and class */

struct name_key {
	__u32 bits;		/* 32 + 8 for each byte of text */
	__u32 scope;		/* one pod's rules for one server */
	__u8 text[NAME_BYTES];	/* backwards, lower case, a dot behind each label */
};

/* What is said of the names that end in a suffix and in no longer one that the table knows. */
struct name_rule {
	__u8 labels;		/* of the suffix */
	__u8 here;		/* ALLOWED ..: the suffix itself, */
	__u8 child;		/* one label more, */
	__u8 below;		/* more than one */
};

MAP_NO_PREALLOC("lpm_trie", struct name_key, struct name_rule, names);

/* Who asks under which rules. A node would have it of the endpoint and the policy's rule that redirects. */
MAP("hash", struct addr, __u32, scopes);

struct head {
	struct ethhdr eth;
	struct iphdr ip;
	__be16 sport, dport, length, check;
	__be16 id, flags, questions, answers, authorities, additional;
} __attribute__((packed, aligned(2)));

/* An OPT record with an extended error (RFC 6891, RFC 8914), as the proxy words it. */
struct opt {
	__u8 root;
	__be16 type, size;
	__be32 flags;
	__be16 bytes;
} __attribute__((packed));

struct blocked {
	struct opt opt;
	__be16 option, bytes, code;
	char words[16];
} __attribute__((packed));

struct question {
	struct head head;
	struct name_key key;
	__u8 slack[4];		/* behind text: an index below 256 stays inside */
	__u8 text[TEXT_BYTES];
	struct blocked blocked;
	__u32 payload;		/* bytes of the message */
	__u32 name;		/* bytes of its text */
	__u32 labels, dots;
	__u32 end;		/* of the question, in the frame */
};

SCRATCH(struct question, asked);

/* CONTINUE if this is a message to a DNS server whose header is that of a plain question. */
INLINE int question_head(struct __sk_buff *skb, struct question *q)
{
	struct head *h = &q->head;

	if (bpf_skb_load_bytes(skb, 0, h, sizeof(*h)) || h->eth.h_proto != be16(ETH_P_IP) || h->ip.version != 4 ||
	    h->ip.ihl != 5 || h->ip.frag_off & be16(0x3fff) || h->ip.protocol != IPPROTO_UDP ||
	    h->dport != be16(DNS_PORT))
		return PROXY;
	if (skb->len != ETH_HLEN + be16(h->ip.tot_len) || be16(h->ip.tot_len) != sizeof(h->ip) + be16(h->length))
		return PROXY;
	q->payload = be16(h->length) - 8;
	if (q->payload > DNS_BYTES || be16(h->flags) & DNS_QR_OPCODE || h->questions != be16(1) || h->answers ||
	    h->authorities || be16(h->additional) > 1)
		return PROXY;
	return CONTINUE;
}

/* CONTINUE with q->text the name, its length bytes turned into dots, and the message whole to its last byte. */
INLINE int question_read(struct __sk_buff *skb, struct question *q)
{
	__u64 length = skb->len - sizeof(struct head), at = 0, bytes;	/* of 64 bits, for what bounds half a register is lost */
	__u32 labels;
	struct opt opt;
	__be16 *kind;

	if (length > TEXT_BYTES)
		length = TEXT_BYTES;
	asm volatile("" : "+r"(length));	/* one comparison for both would be one too few for the verifier */
	if (length < QUESTION_LEAST || bpf_skb_load_bytes(skb, sizeof(struct head), q->text, length))
		return PROXY;
	LOOP for (labels = 0; labels < NAME_BYTES / 2; labels++) {
		bytes = q->text[at];
		if (!bytes)
			break;
		if (bytes > LABEL_BYTES)
			return PROXY;
		q->text[at] = '.';
		at += bytes + 1;
		if (at > NAME_BYTES)
			return PROXY;
	}
	kind = (__be16 *)&q->text[at + 1];
	if (q->text[at] || at + QUESTION_LEAST > length || kind[1] != be16(DNS_IN) || kind[0] == be16(DNS_IXFR) ||
	    kind[0] == be16(DNS_AXFR))
		return PROXY;
	q->name = at;
	q->labels = labels;
	q->end = sizeof(struct head) + at + QUESTION_LEAST;
	if (!q->head.additional)
		return q->end == skb->len ? CONTINUE : PROXY;
	if (bpf_skb_load_bytes(skb, q->end, &opt, sizeof(opt)) || opt.root || opt.type != be16(DNS_OPT))
		return PROXY;
	return q->end + sizeof(opt) + be16(opt.bytes) == skb->len ? CONTINUE : PROXY;
}

INLINE __u8 lower(__u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

INLINE bool plain(__u8 c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* CONTINUE with q->key the name. A dot too many was in a label; they are counted in memory, of which the verifier keeps no
 * values: each count would be a state of its own to it.
 */
INLINE int question_key(struct question *q)
{
	__u64 i, to, length = q->name;
	__u8 c;

	q->dots = 0;
	LOOP for (i = 0; i < NAME_BYTES; i++) {
		asm volatile("" : "+r"(i));	/* else the compiler counts with what the verifier knows no bounds of */
		if (i >= length)
			break;
		c = lower(q->text[i]);
		if (c == '.')
			q->dots++;
		else if (!plain(c))
			return PROXY;
		to = length - 1 - i;
		asm volatile("" : "+r"(to));	/* and drops the mask, which it knows to do nothing */
		q->key.text[to & 255] = c;
	}
	q->key.bits = 32 + 8 * length;
	return q->dots == q->labels ? CONTINUE : PROXY;
}

INLINE int question_judge(struct question *q)
{
	struct name_rule *rule;
	struct addr source;
	__u32 *scope;

	addr_from_v4(&source, q->head.ip.saddr);
	scope = scopes.lookup(&source);
	if (!scope)
		return PROXY;
	q->key.scope = *scope;
	rule = names.lookup(&q->key);
	if (!rule)
		return PROXY;
	if (q->labels == rule->labels)
		return rule->here;
	return q->labels == rule->labels + 1 ? rule->child : rule->below;
}

INLINE int question(struct __sk_buff *skb, struct question *q)
{
	int verdict = question_head(skb, q);

	if (!verdict)
		verdict = question_read(skb, q);
	if (!verdict)
		verdict = question_key(q);
	return verdict ? verdict : question_judge(q);
}

/* RFC 1624: the checksum after a field went from `old` to `new`. */
INLINE __be16 resum(__be16 check, __be16 old, __be16 new)
{
	__u32 sum = (__u16)~check + (__u16)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

/* The question becomes its answer where it stands, as reply() in netstack.dns.message makes it, and goes back. */
INLINE int question_refuse(struct __sk_buff *skb, struct question *q)
{
	struct head *h = &q->head;
	__u32 bytes = q->end + (h->additional ? sizeof(struct blocked) : 0);
	__be16 total = be16(bytes - ETH_HLEN), port = h->sport;
	__be32 addr = h->ip.saddr;
	__u8 mac[6];

	if (h->additional) {
		if (bpf_skb_change_tail(skb, bytes, 0))
			return TC_ACT_OK;
		q->blocked = (struct blocked){
			.opt = { .type = be16(DNS_OPT), .size = be16(DNS_BYTES), .bytes = be16(22) },
			.option = be16(15), .bytes = be16(18), .code = be16(15), .words = "name not allowed",
		};
		if (bpf_skb_store_bytes(skb, q->end, &q->blocked, sizeof(q->blocked), 0))
			return TC_ACT_SHOT;
	}
	__builtin_memcpy(mac, h->eth.h_source, 6);
	__builtin_memcpy(h->eth.h_source, h->eth.h_dest, 6);
	__builtin_memcpy(h->eth.h_dest, mac, 6);
	h->ip.saddr = h->ip.daddr;	/* the sum of both is the same */
	h->ip.daddr = addr;
	h->ip.check = resum(h->ip.check, h->ip.tot_len, total);
	h->ip.tot_len = total;
	h->sport = h->dport;
	h->dport = port;
	h->length = be16(bytes - ETH_HLEN - sizeof(struct iphdr));
	h->check = 0;
	h->flags = be16(DNS_REFUSED) | (h->flags & be16(DNS_RD));
	if (bpf_skb_store_bytes(skb, 0, h, sizeof(*h), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

/* What a program of a pod's device has done anyway by the time it knows of a question: the others are held against it. */
int headers(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct question *q = asked.lookup(&zero);

	return q && !question_head(skb, q) ? ALLOWED : PROXY;
}

int judge(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct question *q = asked.lookup(&zero);

	return q ? question(skb, q) : PROXY;
}

int refuse(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct question *q = asked.lookup(&zero);

	return q && question(skb, q) == REFUSED ? question_refuse(skb, q) : TC_ACT_OK;
}
