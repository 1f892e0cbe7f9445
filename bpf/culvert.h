/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all programs share: the types of map keys and values, the maps, and a few helpers.
 *
 * A workload is known everywhere by the cookie of its network namespace. Addresses are 128 bits in network order, IPv4
 * as ::ffff:a.b.c.d. Ports are in host order unless the type says __be16. Padding is spelled out, because a hash
 * compares every byte of a key.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "counters.h"

#define AF_INET 2
#define AF_INET6 10

#define HBONE_PORT 15008
/* SO_PRIORITY, which every process may set, of the tunnel's socket when the client is a pod of this node. */
#define SAME_NODE_PRIORITY 1
/* 256 virtual ports, 15104 to 15359: with one alone, a pod with few ephemeral ports runs out of them. */
#define VIRTUAL_PORT_BASE 0x3b00
#define VIRTUAL_PORT_MASK 0xff

struct workload {
	__u32 flags;
	__u32 ip4; /* network order; 0: none */
	__u32 ip6[4];
	__u32 mark; /* of the packets that turn round; kept here for a restarted agent */
};

enum workload_flag {
	WORKLOAD_OUTBOUND = 1, /* redirect its outbound connections */
};

/* The numbers of policy.Mode. */
enum mode {
	MODE_UNSET,
	MODE_DISABLE,
	MODE_PERMISSIVE,
	MODE_STRICT,
};

struct mode_key {
	__u64 cookie;
	__u16 port; /* 0: every port that has no entry of its own */
	__u16 pad[3];
};

enum listener_slot {
	LISTENER_OUTBOUND4,
	LISTENER_OUTBOUND6,
	LISTENER_HBONE4,
	LISTENER_HBONE6,
};

struct listener_key {
	__u64 cookie;
	__u32 slot;
	__u32 pad;
};

struct prefix_key {
	__u32 bits;
	__u32 ip[4];
};

struct endpoint {
	__u32 ip[4];
	__u16 port;
	__u16 pad;
};

/* A connection to a virtual port while its handshake lasts. */
struct redirect_key {
	__u64 cookie;
	__u32 ip[4];
	__u16 source_port;
	__u16 virtual_port;
	__u32 pad;
};

/* What a bind of the tunnel's leaves on a socket, before it connects it to a client's address. */
struct delivery {
	__u16 port; /* the application's */
	__u16 pad;
};

/*
 * One direction of a delivered connection. The socket of the tunnel talks from (pod, tunnel port) to the peer, the
 * application from (pod, application port) to the same peer; each finds the other's port under its own.
 */
struct delivery_key {
	__u64 cookie;
	__u32 peer[4];
	__u16 peer_port;
	__u16 local_port;
	__u32 pad;
};

enum delivery_end {
	DELIVERY_TUNNEL = 1,
	DELIVERY_APPLICATION = 2,
};

struct delivery_value {
	__u16 other_port;
	__u16 same_node; /* for the counters alone; 0 in entries of older programs */
	__u32 open; /* enum delivery_end; counted in the entry of the application's port only */
};

/* What the kernel remembers on the tunnel's socket, to take the entries away again. */
struct delivered {
	struct delivery_key application;
	__u16 tunnel_port;
	__u16 live;
	__u32 pad;
};

/* A connection that the kubelet opens, exactly: whose packets carry this is one of its probes, while it is young. */
struct probe_key {
	__u32 source[4], destination[4];
	__u16 source_port, destination_port;
};

enum probe_state {
	PROBE_SYN_SENT = 1,
	PROBE_ESTABLISHED = 2,
};

struct probe_value {
	__u64 since; /* bpf_ktime_get_ns, of the state */
	__u32 state;
	__u32 pad;
};

/* What the kernel remembers on the kubelet's socket, to take the entry away again. */
struct probing {
	struct probe_key key;
	__u32 live;
};

struct plaintext_key {
	__u64 cookie;
	__u32 peer[4];
	__u16 port;
	__u16 pad[3];
};

struct plaintext_value {
	__u64 count;
	__u64 last; /* bpf_ktime_get_ns */
};

struct refusal {
	__u64 cookie;
	__u64 suppressed; /* refusals of this CPU that went unreported before */
	struct endpoint source;
	struct endpoint destination;
};

struct refusal_limit {
	__u64 refilled;
	__u64 tokens;
	__u64 suppressed;
};

#define MAP(name, kind, k, v, size, opts)                                                                              \
	struct {                                                                                                       \
		__uint(type, kind);                                                                                    \
		__type(key, k);                                                                                        \
		__type(value, v);                                                                                      \
		__uint(max_entries, size);                                                                             \
		__uint(map_flags, opts);                                                                               \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                                   \
	} name SEC(".maps")

#define SOCKET_STORAGE(name, v) MAP(name, BPF_MAP_TYPE_SK_STORAGE, int, v, 0, BPF_F_NO_PREALLOC)

MAP(workloads, BPF_MAP_TYPE_HASH, __u64, struct workload, 4096, 0);
MAP(modes, BPF_MAP_TYPE_HASH, struct mode_key, __u32, 65536, BPF_F_NO_PREALLOC);
MAP(listeners, BPF_MAP_TYPE_SOCKHASH, struct listener_key, __u64, 16384, 0);
MAP(captured, BPF_MAP_TYPE_LPM_TRIE, struct prefix_key, __u32, 65536, BPF_F_NO_PREALLOC);
MAP(redirects, BPF_MAP_TYPE_LRU_HASH, struct redirect_key, struct endpoint, 65536, 0);
MAP(deliveries, BPF_MAP_TYPE_HASH, struct delivery_key, struct delivery_value, 262144, BPF_F_NO_PREALLOC);
/* Not an LRU: that would drop a probe under way and say nothing. When it is full, the probe is refused and counted. */
MAP(probes, BPF_MAP_TYPE_HASH, struct probe_key, struct probe_value, 16384, BPF_F_NO_PREALLOC);
MAP(plaintext, BPF_MAP_TYPE_LRU_HASH, struct plaintext_key, struct plaintext_value, 16384, 0);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, COUNTER_ROOM, 0);
MAP(refusal_limits, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct refusal_limit, 1, 0);

/* On the application's connecting socket: where it wanted to go. */
SOCKET_STORAGE(original_destination, struct endpoint);
/* On the socket the tunnel accepted: where the application at the other end wanted to go. */
SOCKET_STORAGE(accepted_destination, struct endpoint);
/* On the agent's and the tunnel's own sockets: not to be redirected. Only the agent can write it. */
SOCKET_STORAGE(exempt, __u32);
SOCKET_STORAGE(delivery, struct delivery);
SOCKET_STORAGE(delivered, struct delivered);
/* On the kubelet's connecting sockets. */
SOCKET_STORAGE(probing, struct probing);
/* On the application's accepted sockets that came in plaintext. */
SOCKET_STORAGE(inbound_plaintext, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} refusals SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *v = bpf_map_lookup_elem(&counters, &which);

	if (v)
		(*v)++;
}

/*
 * Clang merges loads of neighbouring context fields into one through a computed pointer, which the verifier refuses.
 * A load it cannot see into stays as it is.
 */
#define LOAD32(ctx, type, field)                                                                                       \
	({                                                                                                             \
		__u32 v_;                                                                                              \
		asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(v_) : "r"(ctx), "i"(offsetof(type, field)));              \
		v_;                                                                                                    \
	})

#define LOAD_IP6(ctx, type, field, ip)                                                                                 \
	({                                                                                                             \
		(ip)[0] = LOAD32(ctx, type, field[0]);                                                                 \
		(ip)[1] = LOAD32(ctx, type, field[1]);                                                                 \
		(ip)[2] = LOAD32(ctx, type, field[2]);                                                                 \
		(ip)[3] = LOAD32(ctx, type, field[3]);                                                                 \
	})

static __always_inline void map_ip4(__u32 *ip, __u32 ip4)
{
	ip[0] = 0;
	ip[1] = 0;
	ip[2] = bpf_htonl(0xffff);
	ip[3] = ip4;
}

static __always_inline bool is_mapped(const __u32 *ip)
{
	return ip[0] == 0 && ip[1] == 0 && ip[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_ip(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline bool is_loopback(const __u32 *ip)
{
	if (is_mapped(ip))
		return (ip[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return ip[0] == 0 && ip[1] == 0 && ip[2] == 0 && ip[3] == bpf_htonl(1);
}

/* As a destination it means the pod itself. As a source it is forged, and must never count as local: IPv6 lets it in. */
static __always_inline bool is_unspecified(const __u32 *ip)
{
	if (is_mapped(ip))
		return ip[3] == 0;
	return ip[0] == 0 && ip[1] == 0 && ip[2] == 0 && ip[3] == 0;
}

static __always_inline bool is_link_local(const __u32 *ip)
{
	if (is_mapped(ip))
		return (ip[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return (ip[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool is_own(const struct workload *w, const __u32 *ip)
{
	if (is_mapped(ip))
		return w->ip4 && w->ip4 == ip[3];
	return same_ip(w->ip6, ip);
}

static __always_inline bool is_virtual(__u32 port)
{
	return (port & ~VIRTUAL_PORT_MASK) == VIRTUAL_PORT_BASE;
}

/* The same destination has the same virtual port, so two connections that the application may have at once from one
 * source port also differ for the kernel. */
static __always_inline __u16 virtual_port(const struct endpoint *to)
{
	__u32 h = to->ip[0] ^ to->ip[1] ^ to->ip[2] ^ to->ip[3] ^ ((__u32)to->port << 7);

	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return VIRTUAL_PORT_BASE + (h & VIRTUAL_PORT_MASK);
}

/* NULL: the port has no mode, nor has the pod a default, and that is STRICT. */
static __always_inline __u32 *mode_of(__u64 cookie, __u16 port)
{
	struct mode_key k = {.cookie = cookie, .port = port};
	__u32 *mode = bpf_map_lookup_elem(&modes, &k);

	if (mode)
		return mode;
	k.port = 0;
	return bpf_map_lookup_elem(&modes, &k);
}

/* mode is what mode_of tells, NULL included; no number of a mode has more bits than STRICT's. */
static __always_inline void count_connection(__u32 *mode, enum outcome outcome)
{
	count(COUNTER_CONNECTIONS + (mode ? *mode & MODE_STRICT : MODE_UNSET) * OUTCOME_ROOM + outcome);
}

static __always_inline bool lets_plaintext_in(__u32 mode)
{
	return mode == MODE_DISABLE || mode == MODE_PERMISSIVE;
}

/* One end of a delivered connection is gone; with the second one the entries go. */
static __always_inline void delivery_end(struct delivery_key *application, __u32 end)
{
	struct delivery_value *v = bpf_map_lookup_elem(&deliveries, application);
	struct delivery_key tunnel = *application;

	if (!v)
		return;
	if (__sync_fetch_and_and(&v->open, ~end) & ~end)
		return;
	tunnel.local_port = v->other_port;
	bpf_map_delete_elem(&deliveries, &tunnel);
	bpf_map_delete_elem(&deliveries, application);
	count(COUNTER_DELIVERY_ENDED);
}

static __always_inline void tunnel_end(struct delivered *d)
{
	struct delivery_key application = d->application;

	if (!d->live)
		return;
	d->live = 0;
	delivery_end(&application, DELIVERY_TUNNEL);
}

static __always_inline void probe_end(struct probing *p)
{
	struct probe_key k = p->key;

	if (!p->live)
		return;
	p->live = 0;
	bpf_map_delete_elem(&probes, &k);
}
