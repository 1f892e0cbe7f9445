//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * Decides, when an application connects, whether the connection goes through the tunnel; and registers the deliveries
 * of the tunnel's own sockets. Attached to the node's root cgroup, so it runs for every connect on the node.
 *
 * On a miss: an unknown network namespace (workloads) or a destination that is not ours (captured) is left alone. A
 * missing listener refuses the connection: a destination of the mesh is never reached around the tunnel. A delivery
 * that cannot be registered whole fails its connect, and nothing of it stays behind.
 */
#include "culvert.h"

#define ALLOW 1
#define REFUSE 0
#define EADDRINUSE 98
#define EADDRNOTAVAIL 99
#define ENOBUFS 105
#define ECONNREFUSED 111

/* bpf_set_retval is there since Linux 5.18. Without it the connect fails with EPERM. */
const volatile bool HAVE_SET_RETVAL = false;

struct attempt {
	__u64 cookie;
	struct workload *workload;
	struct bpf_sock *socket;
	struct endpoint to;
	bool native; /* the address has the family of the socket */
};

static __always_inline int refuse(int error)
{
	if (HAVE_SET_RETVAL)
		bpf_set_retval(-error);
	return REFUSE;
}

/*
 * A connection of the application's with the very same addresses may exist (a client that the mesh does not know of as
 * plaintext). Handing it the packets of a delivery would mix two connections.
 */
static __always_inline bool application_busy(struct bpf_sock_addr *ctx, struct attempt *a, struct delivery_key *k)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *other;
	bool busy;

	if (is_mapped(k->peer)) {
		t.ipv4.saddr = k->peer[3];
		t.ipv4.daddr = a->workload->ip4;
		t.ipv4.sport = bpf_htons(k->peer_port);
		t.ipv4.dport = bpf_htons(k->local_port);
		other = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.saddr, k->peer, 16);
		__builtin_memcpy(t.ipv6.daddr, a->workload->ip6, 16);
		t.ipv6.sport = bpf_htons(k->peer_port);
		t.ipv6.dport = bpf_htons(k->local_port);
		other = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!other)
		return false;
	busy = other->state != BPF_TCP_LISTEN && other->state != BPF_TCP_TIME_WAIT;
	bpf_sk_release(other);
	return busy;
}

static __always_inline bool bound_to_own(struct attempt *a)
{
	if (is_mapped(a->to.ip))
		return a->socket->src_ip4 == a->workload->ip4;
	return a->socket->src_ip6[0] == a->workload->ip6[0] && a->socket->src_ip6[1] == a->workload->ip6[1] &&
	       a->socket->src_ip6[2] == a->workload->ip6[2] && a->socket->src_ip6[3] == a->workload->ip6[3];
}

static __always_inline int register_delivery(struct bpf_sock_addr *ctx, struct attempt *a, struct delivered *d)
{
	struct delivery_key application = d->application, tunnel = d->application;
	struct delivery_value at_application = {.other_port = d->tunnel_port, .open = DELIVERY_TUNNEL};
	struct delivery_value at_tunnel = {.other_port = application.local_port};
	long err;

	at_application.same_node = a->socket->priority == SAME_NODE_PRIORITY;
	tunnel.local_port = d->tunnel_port;
	err = bpf_map_update_elem(&deliveries, &tunnel, &at_tunnel, BPF_NOEXIST);
	if (err)
		return err == -17 /* EEXIST */ ? EADDRINUSE : ENOBUFS;
	err = bpf_map_update_elem(&deliveries, &application, &at_application, BPF_NOEXIST);
	if (err) {
		bpf_map_delete_elem(&deliveries, &tunnel);
		return err == -17 ? EADDRINUSE : ENOBUFS;
	}
	if (application_busy(ctx, a, &application)) {
		bpf_map_delete_elem(&deliveries, &application);
		bpf_map_delete_elem(&deliveries, &tunnel);
		return EADDRINUSE;
	}
	d->live = 1;
	return 0;
}

static __always_inline int deliver(struct bpf_sock_addr *ctx, struct attempt *a, __u16 port)
{
	struct delivered *d;
	int err;

	if (!a->native || !a->socket->src_port || a->socket->src_port == port || !bound_to_own(a) ||
	    is_own(a->workload, a->to.ip) || is_loopback(a->to.ip) || is_unspecified(a->to.ip)) {
		count(COUNTER_DELIVERY_REFUSED);
		return refuse(EADDRNOTAVAIL);
	}
	d = bpf_sk_storage_get(&delivered, a->socket, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!d) {
		count(COUNTER_DELIVERY_REFUSED);
		return refuse(ENOBUFS);
	}
	tunnel_end(d); /* of an earlier connect of the same socket that failed */
	d->application.cookie = a->cookie;
	__builtin_memcpy(d->application.peer, a->to.ip, 16);
	d->application.peer_port = bpf_ntohs(a->to.port);
	d->application.local_port = port;
	d->application.pad = 0;
	d->tunnel_port = a->socket->src_port;
	err = register_delivery(ctx, a, d);
	if (err) {
		count(err == EADDRINUSE ? COUNTER_DELIVERY_CONFLICT : COUNTER_DELIVERY_REFUSED);
		return refuse(err);
	}
	count(COUNTER_DELIVERY_STARTED);
	return ALLOW;
}

static __always_inline bool is_captured(const __u32 *ip)
{
	struct prefix_key k = {.bits = 128};

	__builtin_memcpy(k.ip, ip, 16);
	return bpf_map_lookup_elem(&captured, &k);
}

static __always_inline bool listener_alive(struct attempt *a)
{
	struct listener_key k = {.cookie = a->cookie};
	struct bpf_sock *l;

	k.slot = is_mapped(a->to.ip) ? LISTENER_OUTBOUND4 : LISTENER_OUTBOUND6;
	l = bpf_map_lookup_elem(&listeners, &k);
	if (!l)
		return false;
	bpf_sk_release(l);
	return true;
}

/* Sets *redirect to the virtual port if the connection is to go to the workload's own address. */
static __always_inline int decide(struct bpf_sock_addr *ctx, struct attempt *a, __u16 *redirect)
{
	struct delivery *wanted;
	struct endpoint *o;

	/* A socket may be connected again after a failure, and then elsewhere. */
	bpf_sk_storage_delete(&original_destination, a->socket);
	if (bpf_sk_storage_get(&exempt, a->socket, 0, 0)) {
		wanted = bpf_sk_storage_get(&delivery, a->socket, 0, 0);
		if (wanted && wanted->port)
			return deliver(ctx, a, wanted->port);
		count(COUNTER_CONNECT_EXEMPT);
		return ALLOW;
	}
	if (!(a->workload->flags & WORKLOAD_OUTBOUND))
		return ALLOW;
	if (is_loopback(a->to.ip) || is_unspecified(a->to.ip) || is_link_local(a->to.ip) ||
	    is_own(a->workload, a->to.ip))
		return ALLOW;
	if (!is_captured(a->to.ip)) {
		count_connection(NULL, OUTCOME_PASS_THROUGH);
		return ALLOW;
	}
	if (!listener_alive(a)) {
		count(COUNTER_CONNECT_REFUSED_NO_LISTENER);
		count_connection(NULL, OUTCOME_NO_LISTENER);
		return refuse(ECONNREFUSED);
	}
	o = bpf_sk_storage_get(&original_destination, a->socket, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o)
		return refuse(ENOBUFS);
	*o = a->to;
	*redirect = virtual_port(&a->to);
	count(COUNTER_CONNECT_REDIRECTED);
	return ALLOW;
}

static __always_inline bool begin(struct bpf_sock_addr *ctx, struct attempt *a)
{
	a->cookie = bpf_get_netns_cookie(ctx);
	a->workload = bpf_map_lookup_elem(&workloads, &a->cookie);
	if (!a->workload || ctx->protocol != IPPROTO_TCP)
		return false;
	a->socket = ctx->sk;
	a->to.port = ctx->user_port;
	return a->socket;
}

SEC("cgroup/connect4")
int culvert_connect4(struct bpf_sock_addr *ctx)
{
	struct attempt a = {.native = true};
	__u16 redirect = 0;
	int verdict;

	if (!begin(ctx, &a))
		return ALLOW;
	map_ip4(a.to.ip, LOAD32(ctx, struct bpf_sock_addr, user_ip4));
	verdict = decide(ctx, &a, &redirect);
	if (!redirect)
		return verdict;
	ctx->user_ip4 = a.workload->ip4;
	ctx->user_port = bpf_htons(redirect);
	return verdict;
}

SEC("cgroup/connect6")
int culvert_connect6(struct bpf_sock_addr *ctx)
{
	struct attempt a = {};
	__u16 redirect = 0;
	int verdict;

	if (!begin(ctx, &a))
		return ALLOW;
	LOAD_IP6(ctx, struct bpf_sock_addr, user_ip6, a.to.ip);
	a.native = !is_mapped(a.to.ip);
	verdict = decide(ctx, &a, &redirect);
	if (!redirect)
		return verdict;
	if (is_mapped(a.to.ip)) {
		ctx->user_ip6[3] = a.workload->ip4;
	} else {
		ctx->user_ip6[0] = a.workload->ip6[0];
		ctx->user_ip6[1] = a.workload->ip6[1];
		ctx->user_ip6[2] = a.workload->ip6[2];
		ctx->user_ip6[3] = a.workload->ip6[3];
	}
	ctx->user_port = bpf_htons(redirect);
	return verdict;
}

/* The application asks whom it is connected to, and is told whom it wanted. A miss: the kernel's answer stands. */
SEC("cgroup/getpeername4")
int culvert_getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct endpoint *o;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return ALLOW;
	o = bpf_sk_storage_get(&original_destination, sk, 0, 0);
	if (!o)
		return ALLOW;
	ctx->user_ip4 = o->ip[3];
	ctx->user_port = o->port;
	return ALLOW;
}

SEC("cgroup/getpeername6")
int culvert_getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct endpoint *o;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return ALLOW;
	o = bpf_sk_storage_get(&original_destination, sk, 0, 0);
	if (!o)
		return ALLOW;
	ctx->user_ip6[0] = o->ip[0];
	ctx->user_ip6[1] = o->ip[1];
	ctx->user_ip6[2] = o->ip[2];
	ctx->user_ip6[3] = o->ip[3];
	ctx->user_port = o->port;
	return ALLOW;
}

char _license[] SEC("license") = "GPL";
