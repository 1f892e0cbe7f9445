//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the application see its client's address. The tunnel's socket connects from the pod to the client's address and
 * port; its packets turn round at the pod's own interface, addresses swapped, and come in as if the client had sent
 * them. The answers turn round the same way. Nothing leaves the pod. One instance for each pod.
 *
 * On a miss in deliveries: going out, the packet is not ours and passes; a SYN of a delivery's socket is dropped
 * instead and a RST turned round by what the socket remembers, so that none of it reaches the wire; and a SYN-ACK of a
 * STRICT port that answers no probe is dropped, a port without a mode being STRICT. Coming in, the packet passes; on a hit
 * it is dropped unless it is one that we turned round ourselves. The proof is the sending socket for a SYN, and for the rest a random mark (the kernel
 * clears marks between namespaces). Fragments of TCP and header chains too long to follow are dropped on the way in:
 * what cannot be read could be a forged delivery, put together only behind this program.
 */
#include "culvert.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define NEXT -1 /* TCX_NEXT: whoever else is attached has its say */
#define DROP 2
#define TCP_FLAG_BITS 0x16 /* SYN, RST, ACK */
#define TCP_SYN 0x02
#define TCP_SYN_ACK 0x12
#define TCP_RST 0x04
#define MAX_HEADERS 6

const volatile __u64 COOKIE = 0;
const volatile __u32 MARK = 0;
const volatile __u32 POD_IP4 = 0;
const volatile __u32 POD_IP6[4] = {};

struct ports {
	__be16 source, destination;
};

struct packet {
	__u32 source[4], destination[4];
	struct ports ports;
	__u32 l4;
	__u8 flags;
	bool v6;
};

enum reading {
	READ,
	NOT_TCP,
	UNREADABLE,
};

static __always_inline int read_tcp(struct __sk_buff *skb, struct packet *p)
{
	if (bpf_skb_load_bytes(skb, p->l4, &p->ports, sizeof(p->ports)))
		return UNREADABLE;
	if (bpf_skb_load_bytes(skb, p->l4 + 13, &p->flags, 1))
		return UNREADABLE;
	return READ;
}

static __always_inline int read_ip4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP)
		return NOT_TCP;
	if (ip.frag_off & bpf_htons(0x3fff))
		return UNREADABLE;
	map_ip4(p->source, ip.saddr);
	map_ip4(p->destination, ip.daddr);
	p->l4 = ETH_HLEN + ip.ihl * 4;
	return read_tcp(skb, p);
}

static __always_inline bool is_extension(__u8 header)
{
	return header == IPPROTO_HOPOPTS || header == IPPROTO_ROUTING || header == IPPROTO_DSTOPTS ||
	       header == IPPROTO_AH || header == 135 /* mobility */;
}

static __always_inline int read_ip6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	__u8 header, h[2];
	__u32 at = ETH_HLEN + sizeof(ip);

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return NOT_TCP;
	p->v6 = true;
	__builtin_memcpy(p->source, &ip.saddr, 16);
	__builtin_memcpy(p->destination, &ip.daddr, 16);
	header = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < MAX_HEADERS; i++) {
		if (header == IPPROTO_TCP) {
			p->l4 = at;
			return read_tcp(skb, p);
		}
		if (!is_extension(header) && header != IPPROTO_FRAGMENT)
			return NOT_TCP;
		if (bpf_skb_load_bytes(skb, at, h, 2))
			return UNREADABLE;
		if (header == IPPROTO_FRAGMENT)
			return h[0] == IPPROTO_TCP || is_extension(h[0]) ? UNREADABLE : NOT_TCP;
		at += header == IPPROTO_AH ? (h[1] + 2) * 4 : (h[1] + 1) * 8;
		header = h[0];
	}
	return UNREADABLE;
}

static __always_inline int read_packet(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return read_ip4(skb, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return read_ip6(skb, p);
	return NOT_TCP;
}

static __always_inline bool sent_by_delivery(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return false;
	return bpf_sk_storage_get(&delivered, sk, 0, 0) && bpf_sk_storage_get(&exempt, sk, 0, 0);
}

/* pod:local -> peer:port becomes peer:port -> pod:other, received by the interface that sends it. */
static __always_inline int turn_round(struct __sk_buff *skb, struct packet *p, __u16 other)
{
	struct ports ports = {.source = p->ports.destination, .destination = bpf_htons(other)};
	__u8 mac[ETH_ALEN];
	long err;

	if (p->v6) {
		err = bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), p->destination, 16, 0);
		err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), p->source, 16, 0);
	} else {
		err = bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &p->destination[3], 4, 0);
		err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &p->source[3], 4, 0);
	}
	/* The sum does not feel the swap, only that one port is another now. */
	err |= bpf_l4_csum_replace(skb, p->l4 + 16, p->ports.source, ports.destination, 2);
	err |= bpf_skb_store_bytes(skb, p->l4, &ports, sizeof(ports), BPF_F_INVALIDATE_HASH);
	err |= bpf_skb_load_bytes(skb, ETH_ALEN, mac, sizeof(mac));
	err |= bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0);
	if (err)
		return DROP;
	skb->mark = MARK;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/*
 * A socket is closed before its reset is sent, and with it the entries may be gone. The application must get the reset
 * all the same: a handshake that it had not finished would go on with the real client, in plaintext.
 */
static __always_inline int turn_late_reset(struct __sk_buff *skb, struct packet *p, struct delivery_key *k)
{
	struct bpf_sock *sk = skb->sk;
	struct delivered *d;

	if (!(p->flags & TCP_RST) || !sk)
		return DROP;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return DROP;
	d = bpf_sk_storage_get(&delivered, sk, 0, 0);
	if (!d || d->tunnel_port != k->local_port || d->application.peer_port != k->peer_port ||
	    !same_ip(d->application.peer, k->peer))
		return DROP;
	return turn_round(skb, p, d->application.local_port);
}

/*
 * The second line behind sk_lookup: a pod that may load programs can attach one of its own to its namespace, and a socket
 * that any of them selects counts, whatever the others say, in whichever order. No handshake is finished without this
 * packet. One that began before the port turned STRICT loses it too: it is closed then in any case.
 */
static __always_inline bool answers_plaintext(struct packet *p)
{
	struct probe_key k = {.source_port = bpf_ntohs(p->ports.destination),
			      .destination_port = bpf_ntohs(p->ports.source)};
	__u32 *mode;

	if ((p->flags & TCP_SYN_ACK) != TCP_SYN_ACK || k.destination_port == HBONE_PORT)
		return false;
	mode = mode_of(COOKIE, k.destination_port);
	if (mode && lets_plaintext_in(*mode))
		return false;
	__builtin_memcpy(k.source, p->destination, 16);
	__builtin_memcpy(k.destination, p->source, 16);
	return !bpf_map_lookup_elem(&probes, &k);
}

SEC("tcx/egress")
int culvert_egress(struct __sk_buff *skb)
{
	struct delivery_key k = {.cookie = COOKIE};
	struct delivery_value *v;
	struct packet p = {};

	if (read_packet(skb, &p) != READ)
		return NEXT;
	__builtin_memcpy(k.peer, p.destination, 16);
	k.peer_port = bpf_ntohs(p.ports.destination);
	k.local_port = bpf_ntohs(p.ports.source);
	v = bpf_map_lookup_elem(&deliveries, &k);
	if (v)
		return turn_round(skb, &p, v->other_port);
	if ((p.flags & (TCP_SYN | TCP_RST)) && sent_by_delivery(skb))
		return turn_late_reset(skb, &p, &k);
	if (answers_plaintext(&p)) {
		count(COUNTER_STRICT_ANSWER_DROPPED);
		return DROP;
	}
	return NEXT;
}

static __always_inline bool claims_own_source(struct packet *p)
{
	__u32 own[4] = {POD_IP6[0], POD_IP6[1], POD_IP6[2], POD_IP6[3]};

	/* What the pod sends itself never comes in here, whichever of its addresses it uses. */
	if (same_ip(p->source, p->destination) || is_loopback(p->source) || is_unspecified(p->source))
		return true;
	if (p->v6)
		return (own[0] | own[1] | own[2] | own[3]) && same_ip(p->source, own);
	return POD_IP4 && p->source[3] == POD_IP4;
}

SEC("tcx/ingress")
int culvert_ingress(struct __sk_buff *skb)
{
	struct delivery_key k = {.cookie = COOKIE};
	struct packet p = {};
	bool turned = skb->mark == MARK;
	int reading = read_packet(skb, &p);

	if (turned)
		skb->mark = 0;
	if (reading == NOT_TCP)
		return NEXT;
	if (reading == UNREADABLE) {
		count(COUNTER_UNREADABLE_DROPPED);
		return DROP;
	}
	/* A reset may follow the last entry's removal; it opens nothing. */
	if (turned && ((p.flags & TCP_FLAG_BITS) != TCP_SYN || sent_by_delivery(skb)))
		return NEXT;
	if (claims_own_source(&p)) {
		count(COUNTER_SPOOFED_SOURCE_DROPPED);
		return DROP;
	}
	__builtin_memcpy(k.peer, p.source, 16);
	k.peer_port = bpf_ntohs(p.ports.source);
	k.local_port = bpf_ntohs(p.ports.destination);
	if (!bpf_map_lookup_elem(&deliveries, &k))
		return NEXT;
	count(COUNTER_SPOOFED_DELIVERY_DROPPED);
	return DROP;
}

char _license[] SEC("license") = "GPL";
