//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * Follows connections of workloads: carries the original destination from the connecting socket to the accepted one,
 * takes the entries of a delivery away when both its ends are closed and the entry of a probe when the kubelet's is, and
 * counts what came in, by mode and outcome. Decides nothing.
 *
 * On a miss: an unknown network namespace (workloads) is left alone. An accepted socket of a virtual port without an
 * entry (redirects) gets no original destination, and the tunnel resets it. A connection that is neither redirected,
 * nor delivered, nor local, nor HBONE, nor a probe (probes) counts as plaintext.
 */
#include "ends.h"

static __always_inline void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct ends *e)
{
	struct redirect_key k = {.cookie = e->cookie, .source_port = e->local_port, .virtual_port = e->remote_port};
	struct delivered *d = bpf_sk_storage_get(&delivered, sk, 0, 0);
	struct endpoint *o, to;

	if (d && d->live) {
		watch_state(ctx);
		return;
	}
	if (!is_virtual(e->remote_port))
		return;
	__builtin_memcpy(k.ip, e->local, 16);
	o = bpf_sk_storage_get(&original_destination, sk, 0, 0);
	if (!o) {
		/* The application means this port itself: what an earlier attempt left must not catch it. */
		bpf_map_delete_elem(&redirects, &k);
		return;
	}
	to = *o;
	bpf_map_update_elem(&redirects, &k, &to, BPF_ANY);
}

static __always_inline bool accepted_redirect(struct bpf_sock *sk, struct ends *e)
{
	struct redirect_key k = {.cookie = e->cookie, .source_port = e->remote_port, .virtual_port = e->local_port};
	struct endpoint *from, *o;

	if (!is_virtual(e->local_port))
		return false;
	__builtin_memcpy(k.ip, e->remote, 16);
	from = bpf_map_lookup_elem(&redirects, &k);
	if (!from)
		return false;
	o = bpf_sk_storage_get(&accepted_destination, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (o)
		*o = *from;
	bpf_map_delete_elem(&redirects, &k);
	count(COUNTER_REDIRECT_ACCEPTED);
	return true;
}

static __always_inline void delivery_of(struct ends *e, struct delivery_key *k)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->cookie = e->cookie;
	__builtin_memcpy(k->peer, e->remote, 16);
	k->peer_port = e->remote_port;
	k->local_port = e->local_port;
}

static __always_inline struct delivery_value *accepted_delivery(struct bpf_sock_ops *ctx, struct ends *e)
{
	struct delivery_value *v;
	struct delivery_key k;

	delivery_of(e, &k);
	v = bpf_map_lookup_elem(&deliveries, &k);
	if (!v)
		return NULL;
	__sync_fetch_and_or(&v->open, DELIVERY_APPLICATION);
	watch_state(ctx);
	return v;
}

/* A probe that was over before its last packet came here has no entry any more, and counts as plaintext. */
static __always_inline bool accepted_probe(struct ends *e)
{
	struct probe_key k = {.source_port = e->remote_port, .destination_port = e->local_port};

	__builtin_memcpy(k.source, e->remote, 16);
	__builtin_memcpy(k.destination, e->local, 16);
	if (!bpf_map_lookup_elem(&probes, &k))
		return false;
	count(COUNTER_PROBE_ACCEPTED);
	return true;
}

static __always_inline void accepted_plaintext(struct bpf_sock *sk, struct ends *e)
{
	struct plaintext_key k = {.cookie = e->cookie, .port = e->local_port};
	struct plaintext_value *v, first = {.count = 1, .last = bpf_ktime_get_ns()};
	__u32 one = 1;

	bpf_sk_storage_get(&inbound_plaintext, sk, &one, BPF_SK_STORAGE_GET_F_CREATE);
	count(COUNTER_PLAINTEXT_ACCEPTED);
	__builtin_memcpy(k.peer, e->remote, 16);
	v = bpf_map_lookup_elem(&plaintext, &k);
	if (!v && !bpf_map_update_elem(&plaintext, &k, &first, BPF_NOEXIST))
		return;
	v = bpf_map_lookup_elem(&plaintext, &k);
	if (!v)
		return;
	__sync_fetch_and_add(&v->count, 1);
	v->last = first.last;
}

static __always_inline void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct ends *e,
				     struct workload *w)
{
	enum outcome outcome = OUTCOME_PLAINTEXT_ACCEPTED;
	struct delivery_value *delivered;

	if (accepted_redirect(sk, e))
		return;
	if (same_ip(e->local, e->remote) || is_loopback(e->remote) || is_own(w, e->remote))
		return;
	if (e->local_port == HBONE_PORT)
		return;
	delivered = accepted_delivery(ctx, e);
	if (delivered)
		outcome = delivered->same_node ? OUTCOME_SAME_NODE : OUTCOME_MTLS;
	else if (accepted_probe(e))
		outcome = OUTCOME_PROBE_EXEMPTED;
	else
		accepted_plaintext(sk, e);
	count_connection(mode_of(e->cookie, e->local_port), outcome);
}

/* Only sockets of a delivery are watched: the tunnel's own, which remembers it, and the application's. */
static __always_inline void closed(struct bpf_sock *sk, struct ends *e)
{
	struct delivered *d = bpf_sk_storage_get(&delivered, sk, 0, 0);
	struct delivery_key k;

	if (d) {
		tunnel_end(d);
		return;
	}
	delivery_of(e, &k);
	delivery_end(&k, DELIVERY_APPLICATION);
}

/* It is here and not with probe.bpf.c, because a socket may outlive its cgroup, and with it the program there. */
static __always_inline bool probe_changed(struct bpf_sock *sk, __u32 state)
{
	struct probing *p = bpf_sk_storage_get(&probing, sk, 0, 0);
	struct probe_value *v;
	struct probe_key k;

	if (!p)
		return false;
	if (state == BPF_TCP_CLOSE)
		probe_end(p);
	if (state != BPF_TCP_ESTABLISHED || !p->live)
		return true;
	k = p->key;
	v = bpf_map_lookup_elem(&probes, &k);
	if (!v)
		return true;
	v->since = bpf_ktime_get_ns();
	v->state = PROBE_ESTABLISHED;
	return true;
}

SEC("sockops")
int culvert_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct workload *w;
	struct ends e = {};
	__u32 op = ctx->op;

	ctx->reply = -1;
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	if (op == BPF_SOCK_OPS_STATE_CB && probe_changed(sk, ctx->args[1]))
		return 1;
	e.cookie = bpf_get_netns_cookie(ctx);
	w = bpf_map_lookup_elem(&workloads, &e.cookie);
	if (!w)
		return 1;
	read_ends(ctx, &e);
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		connecting(ctx, sk, &e);
	else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		accepted(ctx, sk, &e, w);
	else if (ctx->args[1] == BPF_TCP_CLOSE)
		closed(sk, &e);
	return 1;
}

/*
 * A connect may fail between its hook and the first segment (no route, no port), and no state callback ever comes. A
 * miss is the rule: the socket delivers nothing. For a probe the state callback does come, unless another sockops program
 * of the node switched it off.
 */
SEC("cgroup/sock_release")
int culvert_sock_release(struct bpf_sock *sk)
{
	struct delivered *d = bpf_sk_storage_get(&delivered, sk, 0, 0);
	struct probing *p = bpf_sk_storage_get(&probing, sk, 0, 0);

	if (d && sk->state == BPF_TCP_CLOSE)
		tunnel_end(d);
	if (p && (sk->state == BPF_TCP_CLOSE || sk->state == BPF_TCP_SYN_SENT))
		probe_end(p);
	return 1;
}

char _license[] SEC("license") = "GPL";
