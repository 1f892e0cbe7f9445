//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * Decides which socket of the pod a new TCP connection reaches: the application's, one of our listeners, or none, which
 * the kernel answers with a reset. One instance for each pod; established connections never come here.
 *
 * On a miss: a port without a mode, in a pod without a default (modes), is STRICT. A virtual port without an entry
 * (redirects) is an ordinary port. A missing listener refuses. A tuple without a delivery (deliveries) and without a
 * young probe (probes) is not exempt from STRICT.
 */
#include "culvert.h"

const volatile __u64 COOKIE = 0;
const volatile __u32 POD_IP4 = 0;
const volatile __u32 POD_IP6[4] = {};

/* Each CPU reports up to this many refusals at once, and as many a second. */
#define REFUSALS_PER_SECOND 200
#define NANOSECONDS 1000000000ULL

struct arrival {
	__u32 local[4], remote[4];
	__u16 local_port, remote_port;
	bool v6;
};

static __always_inline void read_arrival(struct bpf_sk_lookup *ctx, struct arrival *a)
{
	a->v6 = ctx->family == AF_INET6;
	if (a->v6) {
		LOAD_IP6(ctx, struct bpf_sk_lookup, local_ip6, a->local);
		LOAD_IP6(ctx, struct bpf_sk_lookup, remote_ip6, a->remote);
	} else {
		map_ip4(a->local, LOAD32(ctx, struct bpf_sk_lookup, local_ip4));
		map_ip4(a->remote, LOAD32(ctx, struct bpf_sk_lookup, remote_ip4));
	}
	a->local_port = ctx->local_port;
	a->remote_port = bpf_ntohs(ctx->remote_port);
}

/* The interface tells nothing: a pod that talks to its own address arrives, as it seems, on eth0. */
static __always_inline bool is_local(struct arrival *a)
{
	__u32 own[4] = {POD_IP6[0], POD_IP6[1], POD_IP6[2], POD_IP6[3]};

	if (same_ip(a->local, a->remote) || is_loopback(a->remote))
		return true;
	if (a->v6)
		return same_ip(a->remote, own);
	return POD_IP4 && a->remote[3] == POD_IP4;
}

static __always_inline bool is_redirected(struct arrival *a)
{
	struct redirect_key k = {.cookie = COOKIE, .source_port = a->remote_port, .virtual_port = a->local_port};

	if (!is_virtual(a->local_port))
		return false;
	__builtin_memcpy(k.ip, a->remote, 16);
	return bpf_map_lookup_elem(&redirects, &k);
}

static __always_inline int steer(struct bpf_sk_lookup *ctx, __u32 slot, __u32 counted, __u32 missed)
{
	struct listener_key k = {.cookie = COOKIE, .slot = slot};
	struct bpf_sock *l = bpf_map_lookup_elem(&listeners, &k);
	long err;

	if (!l) {
		count(missed);
		count_connection(NULL, OUTCOME_NO_LISTENER);
		return SK_DROP;
	}
	err = bpf_sk_assign(ctx, l, 0);
	bpf_sk_release(l);
	if (err)
		return SK_DROP;
	count(counted);
	return SK_PASS;
}

static __always_inline bool is_strict(__u32 *mode)
{
	if (!mode) {
		count(COUNTER_STRICT_REFUSED_NO_MODE);
		return true;
	}
	return !lets_plaintext_in(*mode);
}

/* Only at the address whose interface the guard of the way in watches. */
static __always_inline bool is_delivery(struct arrival *a)
{
	struct delivery_key k = {.cookie = COOKIE, .peer_port = a->remote_port, .local_port = a->local_port};
	__u32 own[4] = {POD_IP6[0], POD_IP6[1], POD_IP6[2], POD_IP6[3]};

	if (a->v6 ? !same_ip(a->local, own) : a->local[3] != POD_IP4)
		return false;
	__builtin_memcpy(k.peer, a->remote, 16);
	return bpf_map_lookup_elem(&deliveries, &k);
}

/* As long as the kernel sends a SYN again, by default; an entry that nobody took away counts no longer. */
#define SYN_SENT_LASTS (130 * NANOSECONDS)
/* A listener that is short of room answers with a SYN cookie, and then the handshake's last packet comes here as well. */
#define ESTABLISHED_LASTS (1 * NANOSECONDS)

/*
 * The tuple is all there is to know a packet of the kubelet's by. To forge it one must hit the kubelet's source port while
 * its SYN is under way, and even then the answer goes to the node, which resets it. Who gets the answer as well stands
 * between node and pod (ARP poisoning on a shared bridge) and could take over any connection in plaintext; it gets this
 * port alone, and only at the moment of a probe.
 */
static __always_inline bool is_probe(struct arrival *a)
{
	struct probe_key k = {.source_port = a->remote_port, .destination_port = a->local_port};
	struct probe_value *v;
	__u64 since;

	__builtin_memcpy(k.source, a->remote, 16);
	__builtin_memcpy(k.destination, a->local, 16);
	v = bpf_map_lookup_elem(&probes, &k);
	if (!v)
		return false;
	since = *(volatile __u64 *)&v->since; /* before the clock: it may change meanwhile */
	return bpf_ktime_get_ns() - since < (v->state == PROBE_SYN_SENT ? SYN_SENT_LASTS : ESTABLISHED_LASTS);
}

static __always_inline bool take_token(struct refusal_limit *l)
{
	__u64 now = bpf_ktime_get_ns(), fresh = (now - l->refilled) * REFUSALS_PER_SECOND / NANOSECONDS;

	if (!l->refilled || fresh >= REFUSALS_PER_SECOND) {
		l->tokens = REFUSALS_PER_SECOND;
		l->refilled = now;
	} else if (fresh) {
		l->tokens += fresh;
		if (l->tokens > REFUSALS_PER_SECOND)
			l->tokens = REFUSALS_PER_SECOND;
		l->refilled = now;
	}
	if (!l->tokens)
		return false;
	l->tokens--;
	return true;
}

static __always_inline void report(struct arrival *a, __u32 *mode)
{
	__u32 zero = 0;
	struct refusal_limit *l = bpf_map_lookup_elem(&refusal_limits, &zero);
	struct refusal r = {.cookie = COOKIE};

	count(COUNTER_STRICT_REFUSED);
	count_connection(mode, OUTCOME_PLAINTEXT_REFUSED);
	if (!l)
		return;
	if (!take_token(l)) {
		l->suppressed++;
		return;
	}
	r.suppressed = l->suppressed;
	__builtin_memcpy(r.source.ip, a->remote, 16);
	__builtin_memcpy(r.destination.ip, a->local, 16);
	r.source.port = bpf_htons(a->remote_port);
	r.destination.port = bpf_htons(a->local_port);
	if (bpf_ringbuf_output(&refusals, &r, sizeof(r), 0))
		l->suppressed++;
	else
		l->suppressed = 0;
}

SEC("sk_lookup")
int culvert_lookup(struct bpf_sk_lookup *ctx)
{
	struct arrival a = {};
	__u32 *mode;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	read_arrival(ctx, &a);
	if (is_redirected(&a))
		return steer(ctx, a.v6 ? LISTENER_OUTBOUND6 : LISTENER_OUTBOUND4, COUNTER_REDIRECT_STEERED,
			     COUNTER_REDIRECT_REFUSED_NO_LISTENER);
	if (is_local(&a))
		return SK_PASS;
	if (a.local_port == HBONE_PORT)
		return steer(ctx, a.v6 ? LISTENER_HBONE6 : LISTENER_HBONE4, COUNTER_HBONE_STEERED,
			     COUNTER_HBONE_REFUSED_NO_LISTENER);
	mode = mode_of(COOKIE, a.local_port);
	if (!is_strict(mode) || is_delivery(&a) || is_probe(&a))
		return SK_PASS;
	report(&a, mode);
	return SK_DROP;
}

char _license[] SEC("license") = "GPL";
