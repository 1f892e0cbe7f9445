package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// reach says which agent is asked, and how.
type reach struct {
	socket  string
	local   bool
	node    string
	cluster exec.Options
	open    func(exec.Options) (cluster, error)
}

// cluster runs culvert in the agents of other nodes.
type cluster interface {
	NodeOf(ctx context.Context, pod string) (string, error)
	NamedNodes(ctx context.Context) string
	Run(ctx context.Context, node string, args ...string) ([]byte, error)
}

func openCluster(o exec.Options) (cluster, error) {
	c, err := exec.Open(o)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (r *reach) register(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.StringVar(&r.socket, "admin-socket", admin.DefaultSocket, "unix socket of this node's agent")
	flags.BoolVar(&r.local, "local", false, "ask this node's agent only, never the API server")
	flags.StringVar(&r.cluster.Kubeconfig, "kubeconfig", "", "file that says how the API server is reached (default: as kubectl does)")
	flags.StringVar(&r.cluster.Context, "context", "", "context of the kubeconfig (default: the current one)")
	flags.StringVar(&r.cluster.Namespace, "namespace", "culvert-system", "the agents' own namespace")
}

// askLocal reports whether the agent of this node is asked first.
func (r *reach) askLocal() bool {
	if r.node != "" {
		return false
	}
	_, err := os.Lstat(r.socket)
	return r.local || !errors.Is(err, fs.ErrNotExist)
}

func (r *reach) client() *admin.Client { return admin.NewClient(r.socket, version) }

// certificates asks the agent of the node that was named, or that the pod runs on, or of this node.
func (r *reach) certificates(ctx context.Context, pod string) (*admin.Certificates, error) {
	var here error // why this node's agent is not enough
	if r.askLocal() {
		all, err := r.client().Certificates(ctx)
		if err != nil {
			return nil, notRoot(err)
		}
		if pod == "" || hasPod(all, pod) {
			return all, nil
		}
		here = unknownPod(all, pod)
		if r.local {
			return nil, here
		}
	}
	node, c, err := r.nodeFor(ctx, pod, here)
	if err != nil {
		return nil, err
	}
	text, err := c.Run(ctx, node, "certs", "--local", "-o", "json")
	if err != nil {
		return nil, explainExit(err)
	}
	all := &admin.Certificates{}
	if err := json.Unmarshal(text, all); err != nil {
		return nil, fmt.Errorf("agent of node %s: answer: %w", node, err)
	}
	if pod != "" && !hasPod(all, pod) {
		return nil, unknownPod(all, pod)
	}
	return all, nil
}

// handshake asks the agent of from's node for one.
func (r *reach) handshake(ctx context.Context, from, to string) (*admin.Handshake, error) {
	var here error
	if r.askLocal() {
		h, err := r.client().Handshake(ctx, from, to)
		if err == nil || r.local || !errors.Is(err, admin.ErrUnknownWorkload) {
			return h, notRoot(err)
		}
		here = err
	}
	node, c, err := r.nodeFor(ctx, from, here)
	if err != nil {
		return nil, err
	}
	text, err := c.Run(ctx, node, "certs", "verify", "--local", "-o", "json", "--", from, to)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || len(text) == 0) {
		return nil, explainExit(err)
	}
	h := &admin.Handshake{} // of a handshake that failed, too
	if err := json.Unmarshal(text, h); err != nil {
		return nil, fmt.Errorf("agent of node %s: answer: %w", node, err)
	}
	return h, nil
}

// notRoot says what those can do who may not ask this node's agent.
func notRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (without root, use --node, which goes through the API server)", err)
	}
	return err
}

// nodeFor opens the cluster and finds the node to ask. here is why this node's agent is not enough, nil if it was not asked.
func (r *reach) nodeFor(ctx context.Context, pod string, here error) (string, cluster, error) {
	if here == nil && r.node == "" {
		here = fmt.Errorf("there is no agent's socket %s on this machine", r.socket)
	}
	c, err := r.open(r.cluster)
	switch {
	case err != nil:
		return "", nil, errors.Join(here, err)
	case r.node != "":
		return r.node, c, nil
	case pod == "":
		return "", nil, fmt.Errorf("%w: say which pod, or which node with --node: %s", here, c.NamedNodes(ctx))
	}
	node, err := c.NodeOf(ctx, pod)
	return node, c, err
}

// explainExit knows what an agent says that is older than this command.
func explainExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && (strings.Contains(exit.Stderr, "unknown command") || strings.Contains(exit.Stderr, "unknown flag")) {
		return fmt.Errorf("%w (the agent is of an older version than this command, %s)", err, version)
	}
	return err
}

func hasPod(all *admin.Certificates, pod string) bool {
	return slices.ContainsFunc(all.SVIDs, func(s admin.SVID) bool { return slices.Contains(s.Workloads, pod) })
}

// maxCandidates bounds what an error names.
const maxCandidates = 10

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
		return errors.New(text + "; no pod of that node is")
	}
	return fmt.Errorf("%s; these are: %s", text, someOf(named, maxCandidates))
}

func someOf(names []string, most int) string {
	names = slices.Sorted(slices.Values(names))
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return plain(strings.Join(names, ", ")) + more
}
