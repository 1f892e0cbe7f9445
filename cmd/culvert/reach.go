package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// reach says which agents are asked, and how.
type reach struct {
	socket  string
	local   bool
	node    string
	cluster exec.Options
	open    func(exec.Options) (cluster, error)
}

// cluster runs culvert in the agents of its nodes, and knows what there is to ask about.
type cluster interface {
	NodeOf(ctx context.Context, pod string) (string, error)
	NamedNodes(ctx context.Context) string
	Run(ctx context.Context, node string, args ...string) ([]byte, error)
	AllNodes(ctx context.Context) ([]string, error)
	AgentNodes(ctx context.Context) (map[string]string, error)
	PodsNamed(ctx context.Context, name string) ([]string, error)
	PodsIn(ctx context.Context, namespace string) ([]string, error)
}

var _ cluster = (*exec.Cluster)(nil)

func openCluster(o exec.Options) (cluster, error) {
	c, err := exec.Open(o)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (r *reach) register(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&r.socket, "admin-socket", admin.DefaultSocket, "unix socket of this node's agent")
	flags.BoolVar(&r.local, "local", false, "ask this node's agent only, never the API server")
	flags.StringVar(&r.node, "node", "", "ask the agent of this node only, through the API server")
	flags.StringVar(&r.cluster.Kubeconfig, "kubeconfig", "", kubeconfigUsage)
	flags.StringVar(&r.cluster.Context, "context", "", contextUsage)
	registerCulvertNamespace(c, &r.cluster.Namespace)
	_ = c.RegisterFlagCompletionFunc("node", r.completeNodes) // the flag is there
}

// What flags of several commands say of themselves.
const (
	kubeconfigUsage = "file that says how the API server is reached (default: as kubectl does)"
	contextUsage    = "context of the kubeconfig (default: the current one)"
)

func registerCulvertNamespace(c *cobra.Command, namespace *string) {
	c.Flags().StringVar(namespace, "culvert-namespace", "culvert-system", "Culvert's own namespace")
}

func (r *reach) check() error {
	if r.local && r.node != "" {
		return usage("--local and --node exclude each other")
	}
	return nil
}

// hasSocket reports whether there is an agent on this machine, or was.
func (r *reach) hasSocket() bool {
	_, err := os.Lstat(r.socket)
	return !errors.Is(err, fs.ErrNotExist)
}

// askLocal reports whether the agent of this node is asked first.
func (r *reach) askLocal() bool { return r.local || r.node == "" && r.hasSocket() }

func (r *reach) client() *admin.Client { return admin.NewClient(r.socket, version) }

// hasKubeconfig reports whether anyone said how the API server is reached. A pod's own account does not count: an agent's
// may not run anything in other agents.
func (r *reach) hasKubeconfig() bool {
	if r.cluster.Kubeconfig != "" || r.cluster.Context != "" || os.Getenv("KUBECONFIG") != "" {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(home, ".kube", "config"))
	return !errors.Is(err, fs.ErrNotExist)
}

// asKubectl is the kubeconfig that kubectl would read, for those clients that know files only; empty: there is none. Of
// several in KUBECONFIG it is the first that exists.
func asKubectl(kubeconfig string) string {
	all := []string{kubeconfig}
	if kubeconfig == "" {
		all = filepath.SplitList(os.Getenv("KUBECONFIG"))
		if home, err := os.UserHomeDir(); err == nil && len(all) == 0 {
			all = []string{filepath.Join(home, ".kube", "config")}
		}
	}
	for _, path := range all {
		if _, err := os.Stat(path); err == nil || path == kubeconfig {
			return path
		}
	}
	return ""
}

// notRoot says what those can do who may not ask this node's agent.
func notRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (without root, use --node, which goes through the API server)", err)
	}
	return err
}

// explainExit knows what an agent says that is older than this command.
func explainExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && (strings.Contains(exit.Stderr, "unknown command") || strings.Contains(exit.Stderr, "unknown flag")) {
		return fmt.Errorf("%w (the agent is of an older version than this command, %s)", err, version)
	}
	return err
}

// interruptedAs turns the error of whatever Ctrl-C ended into the exit code that shells expect.
func interruptedAs(ctx context.Context, name string, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exitError{code: exitInterrupted, err: errors.New(name + ": interrupted")}
	}
	return err
}

// finished is interruptedAs for that command.
func finished(c *cobra.Command, err error) error { return interruptedAs(c.Context(), c.Name(), err) }

// maxCandidates bounds what an error names.
const maxCandidates = 10

func someOf(names []string, most int) string {
	names = slices.Sorted(slices.Values(names))
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return plain(strings.Join(names, ", ")) + more
}
