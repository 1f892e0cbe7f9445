package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
)

// certificates asks the agent of the node that was named, or that the pod runs on, or of this node.
func (a *asking) certificates(ctx context.Context, pod string) (*admin.Certificates, error) {
	if pod == "" && a.node == "" && !a.askLocal() {
		return nil, a.sayWhich(ctx)
	}
	all, err := ask(ctx, a, pod, []string{"certs", "--local", "-o", "json"}, func(c *admin.Client) (*admin.Certificates, error) {
		all, err := c.Certificates(ctx)
		if err == nil && pod != "" && !hasPod(all, pod) {
			err = unknownPod(all, pod)
		}
		return all, err
	})
	if err == nil && pod != "" && !hasPod(all, pod) {
		err = unknownPod(all, pod)
	}
	return all, err
}

// sayWhich is the error for those who are not on a node and name neither pod nor node.
func (a *asking) sayWhich(ctx context.Context) error {
	here := fmt.Errorf("there is no agent's socket %s on this machine", a.socket)
	c, err := a.open(a.cluster)
	if err != nil {
		return fmt.Errorf("%w\n%w", here, err)
	}
	return fmt.Errorf("%w: say which pod, or which node with --node: %s", here, c.NamedNodes(ctx))
}

// handshake asks the agent of from's node for one.
func (a *asking) handshake(ctx context.Context, from, to string) (*admin.Handshake, error) {
	return ask(ctx, a, from, []string{"certs", "verify", "--local", "-o", "json", "--", from, to}, func(c *admin.Client) (*admin.Handshake, error) {
		return c.Handshake(ctx, from, to)
	})
}

func hasPod(all *admin.Certificates, pod string) bool {
	return slices.ContainsFunc(all.SVIDs, func(s admin.SVID) bool { return slices.Contains(s.Workloads, pod) })
}

// unknownPod is the error for a pod without an identity on a node, with those that may have been meant: of its
// namespace, or all.
func unknownPod(all *admin.Certificates, pod string) error {
	namespace, _, _ := strings.Cut(pod, "/")
	var same, others []string
	for i := range all.SVIDs {
		for _, w := range all.SVIDs[i].Workloads {
			if others = append(others, w); strings.HasPrefix(w, namespace+"/") {
				same = append(same, w)
			}
		}
	}
	named := same
	if len(same) == 0 {
		named = others
	}
	text := fmt.Sprintf("pod %s has no identity on node %s: it is not enrolled there, or not at all", pod, plain(all.Node))
	if len(named) == 0 {
		return elsewhere(text + "; no pod of that node is")
	}
	return elsewhere(fmt.Sprintf("%s; these are: %s", text, someOf(named, maxCandidates)))
}

// elsewhere is the error of a node that does not have the pod; another may.
type elsewhere string

// Error implements error.
func (e elsewhere) Error() string { return string(e) }

// Is makes errors.Is find ErrUnknownWorkload.
func (e elsewhere) Is(target error) bool { return target == admin.ErrUnknownWorkload }
