/* SPDX-License-Identifier: GPL-2.0 */
/* The two ends of a connection, as sockops programs see them. */
#pragma once
#include "culvert.h"

struct ends {
	__u64 cookie;
	__u32 local[4], remote[4];
	__u16 local_port, remote_port;
};

static __always_inline void read_ends(struct bpf_sock_ops *ctx, struct ends *e)
{
	if (ctx->family == AF_INET) {
		map_ip4(e->local, LOAD32(ctx, struct bpf_sock_ops, local_ip4));
		map_ip4(e->remote, LOAD32(ctx, struct bpf_sock_ops, remote_ip4));
	} else {
		LOAD_IP6(ctx, struct bpf_sock_ops, local_ip6, e->local);
		LOAD_IP6(ctx, struct bpf_sock_ops, remote_ip6, e->remote);
	}
	e->local_port = ctx->local_port;
	e->remote_port = bpf_ntohl(ctx->remote_port);
}

static __always_inline long watch_state(struct bpf_sock_ops *ctx)
{
	return bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}
