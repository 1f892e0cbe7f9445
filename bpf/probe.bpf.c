//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * Tells sk_lookup in the pods which connections the kubelet opens, so that its probes reach STRICT ports. Attached to the
 * kubelet's own cgroup: a socket belongs for good to the cgroup it was made in, and the kernel runs this program for no
 * other (the node's agent makes sure that the cgroup has none below it). An address, a user or a mark would prove nothing.
 *
 * Decides nothing by itself. On a miss (the socket is in another network namespace, the map is full, there is no memory):
 * no entry, and a STRICT port refuses the connection. The entry goes with the socket: see sockops.bpf.c.
 */
#include "ends.h"

/* The agent's network namespace, which is the kubelet's. 0 is nobody's. */
const volatile __u64 HOST = 0;

static __always_inline int publish(struct probing *p)
{
	struct probe_value v = {.since = bpf_ktime_get_ns(), .state = PROBE_SYN_SENT};
	struct probe_key k = p->key;

	return bpf_map_update_elem(&probes, &k, &v, BPF_ANY);
}

SEC("sockops")
int culvert_probe(struct bpf_sock_ops *ctx)
{
	struct ends e = {};
	struct bpf_sock *sk;
	struct probing *p;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB || bpf_get_netns_cookie(ctx) != HOST)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	read_ends(ctx, &e);
	if (is_loopback(e.remote) || same_ip(e.local, e.remote))
		return 1;
	p = bpf_sk_storage_get(&probing, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!p) {
		count(COUNTER_PROBE_NOT_EXEMPTED);
		return 1;
	}
	probe_end(p); /* of an earlier connect of the same socket */
	__builtin_memcpy(p->key.source, e.local, 16);
	__builtin_memcpy(p->key.destination, e.remote, 16);
	p->key.source_port = e.local_port;
	p->key.destination_port = e.remote_port;
	p->live = 1;
	/* No entry that nobody will take away. */
	if (watch_state(ctx) || publish(p)) {
		p->live = 0;
		count(COUNTER_PROBE_NOT_EXEMPTED);
	}
	return 1;
}

char _license[] SEC("license") = "GPL";
