package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"google.golang.org/grpc/peer"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// address is the caller's, without the port.
func address(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	return host(p.Addr)
}

func host(a net.Addr) string {
	name, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return name
}

// checkAddress refuses a token that comes from elsewhere than from its pod or node: somebody took it away. Without it, a
// stolen token still gets no more than the identities of the node it was stolen from.
//
// It is right only where nothing rewrites the source on the way to the CA. Some network plug-ins and kube-proxy with
// --cluster-cidr masquerade what a node sends to a Service, often with the address of a tunnel or a bridge.
func (i *issuer) checkAddress(ctx context.Context, caller ca.Caller, from string) error {
	if !i.bound {
		return nil
	}
	known, err := i.placement.Addresses(ctx, caller)
	if err != nil {
		return failure{unavailable, err}
	}
	if !contains(known, from) {
		return failure{elsewhere, fmt.Errorf("the token of pod %s on node %s came from %s, which is not among its addresses %s",
			caller.Pod, caller.Node, from, known)}
	}
	return nil
}

func contains(all []netip.Addr, text string) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && slices.Contains(all, a.WithZone("").Unmap())
}

// fromPod says for the audit log whether a caller's address is its pod's or its node's.
func (i *issuer) fromPod(caller ca.Caller, from string) string {
	known := i.placement.KnownAddresses(caller)
	switch {
	case len(known) == 0:
		return "unknown"
	case contains(known, from):
		return "yes"
	}
	return "no"
}
