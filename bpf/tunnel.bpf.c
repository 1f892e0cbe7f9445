//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * How the tunnel and the kernel talk: by two ordinary calls on sockets that the tunnel holds. It needs no map, no
 * bpf(2) and no capability for that. Attached to the node's root cgroup; what counts is the cgroup of the socket, which
 * the agent made or accepted from, and not where the tunnel runs.
 *
 *     getsockname   of a redirected connection, at its accepting end: where the application wanted to go
 *     bind          of an exempt socket, to the application's address and port: deliver to there
 *
 * On a miss: a socket without a destination (accepted_destination) keeps its own address, and the tunnel resets it. A
 * socket that is not ours (exempt) is bound as asked. In an unknown network namespace (workloads), or when there is no
 * room to remember it (delivery), a bind that asks for a delivery is refused.
 */
#include "culvert.h"

#define ALLOW 1
#define REFUSE 0

static __always_inline struct endpoint *wanted_by_peer(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return NULL;
	return bpf_sk_storage_get(&accepted_destination, sk, 0, 0);
}

SEC("cgroup/getsockname4")
int culvert_getsockname4(struct bpf_sock_addr *ctx)
{
	struct endpoint *o = wanted_by_peer(ctx);

	if (!o || !is_mapped(o->ip))
		return ALLOW;
	ctx->user_ip4 = o->ip[3];
	ctx->user_port = o->port;
	return ALLOW;
}

SEC("cgroup/getsockname6")
int culvert_getsockname6(struct bpf_sock_addr *ctx)
{
	struct endpoint *o = wanted_by_peer(ctx);

	if (!o)
		return ALLOW;
	ctx->user_ip6[0] = o->ip[0];
	ctx->user_ip6[1] = o->ip[1];
	ctx->user_ip6[2] = o->ip[2];
	ctx->user_ip6[3] = o->ip[3];
	ctx->user_port = o->port;
	return ALLOW;
}

/*
 * A wish is never taken back: a bind to port 0 that follows a failed one leaves it. Otherwise the connect would go to
 * the client itself.
 */
static __always_inline int bind(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u16 port = bpf_ntohs(ctx->user_port);
	struct delivery *wanted;
	__u64 cookie;

	if (!sk || ctx->protocol != IPPROTO_TCP || !port || !bpf_sk_storage_get(&exempt, sk, 0, 0))
		return ALLOW;
	cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&workloads, &cookie)) {
		count(COUNTER_DELIVERY_REFUSED);
		return REFUSE;
	}
	wanted = bpf_sk_storage_get(&delivery, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!wanted) {
		count(COUNTER_DELIVERY_REFUSED);
		return REFUSE;
	}
	wanted->port = port;
	ctx->user_port = 0; /* the kernel chooses one */
	return ALLOW;
}

SEC("cgroup/bind4")
int culvert_bind4(struct bpf_sock_addr *ctx)
{
	return bind(ctx);
}

SEC("cgroup/bind6")
int culvert_bind6(struct bpf_sock_addr *ctx)
{
	return bind(ctx);
}

char _license[] SEC("license") = "GPL";
