// Package walk plays the walkthrough, and what else Culvert promises on Kubernetes, on a real cluster: it installs Culvert
// from its manifests, applies policies as people do, asks with curl from inside pods, and removes Culvert again.
//
// What a row expects is shown by more than one witness where that is possible: the client, the server, the tunnels' logs,
// and what could be read on the node's interfaces.
package walk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

// Cluster is what the tests need of a cluster.
type Cluster interface {
	Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error)
	Exec(ctx context.Context, node string, stdin io.Reader, args ...string) (string, error)
	Nodes(ctx context.Context) ([]string, error)
	RestartNode(ctx context.Context, node string) error
	LoadImage(ctx context.Context, path string) error
	KubectlCommand(ctx context.Context) ([]string, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options says what is tested, and how.
type Options struct {
	Cluster    Cluster
	NodeAccess bool           // the nodes are containers of this machine
	Image      string         // archive of the product's image; empty: the cluster has it, or pulls it
	Overlay    string         // the folder for kubectl apply -k
	Tools      string         // image of the test application
	Culvert    string         // the product's command line on this machine
	Only       *regexp.Regexp // rows that are played, by "group: row"; nil: all
	Keep       bool           // leave Culvert and the pods of the tests
	Progress   io.Writer
}

// Run plays the rows. The result holds the rows so far when there is an error; an error means that they could not be
// played to the end, not that one came out differently.
func Run(ctx context.Context, o Options) (*Result, error) {
	s := &suite{Options: o, begin: time.Now(), pods: map[string]*pod{}, leaving: map[string]bool{}, result: &Result{}}
	err := s.play(ctx)
	s.result.Took = time.Since(s.begin)
	if (err != nil || s.result.failed() > 0) && ctx.Err() == nil {
		s.result.Diagnosis = s.diagnose(ctx)
	}
	if !o.Keep {
		err = errors.Join(err, s.clear(context.WithoutCancel(ctx)))
	}
	s.logs.close()
	return s.result, err
}

// Rows returns what would be played.
func Rows(only *regexp.Regexp) []string {
	var names []string
	for _, g := range groups() {
		for _, r := range g.rows {
			if full := g.full(r); only == nil || only.MatchString(full) {
				names = append(names, full)
			}
		}
	}
	return names
}

// groups are played in this order: what endangers the cluster comes late, and the removal last.
func groups() []group {
	all := []group{installation()}
	all = append(all, walkthrough()...)
	return append(all, control(), openConnections(), services(), probes(), firstPackets(), reports(), badInput(), manyPolicies(),
		answers(), certificates(), rotation(), rotationOfTheCA(), restarts(), nodeRestart(), churn(), removal())
}

// suite is one run.
type suite struct {
	Options
	begin time.Time
	nodes []string // where pods are put: [0] is b of the walkthrough, [1] is a
	dual  bool
	pods  map[string]*pod
	// leaving are pods that were told to end.
	leaving map[string]bool
	logs    follower
	before  map[string]hostState // of the nodes, before Culvert came
	// madeRoot says that the root namespace is ours.
	madeRoot bool
	result   *Result
}

func (s *suite) play(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	for _, g := range groups() {
		if err := s.playGroup(ctx, g); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	return nil
}

// look finds out what the cluster is like.
func (s *suite) look(ctx context.Context) error {
	nodes, err := s.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return errors.New("the cluster has no node")
	}
	slices.Sort(nodes)
	s.nodes = []string{nodes[0], nodes[min(1, len(nodes)-1)]}
	addresses, err := s.kubectl(ctx, "get", "service", "kubernetes", "--namespace=default", "--output=jsonpath={.spec.clusterIPs[0]}")
	if err != nil {
		return err
	}
	ranges, err := s.kubectl(ctx, "get", "node", nodes[0], "--output=jsonpath={.spec.podCIDRs[*]}")
	s.dual = strings.Contains(ranges, ":") && strings.Contains(ranges, ".")
	s.progress("nodes %s; first Service %s; dual stack: %t", strings.Join(nodes, ", "), addresses, s.dual)
	return err
}

// versions are the IP versions that pods have.
func (s *suite) versions() []int {
	if s.dual {
		return []int{4, 6}
	}
	return []int{4}
}

// node returns where the walkthrough's node a or b is.
func (s *suite) node(letter string) string {
	if letter == "a" {
		return s.nodes[1]
	}
	return s.nodes[0]
}

// other returns the node that is not the one given; the same one in a cluster of one node.
func (s *suite) other(node string) string {
	if node == s.nodes[0] {
		return s.nodes[1]
	}
	return s.nodes[0]
}

func (s *suite) progress(format string, args ...any) {
	fmt.Fprintf(s.Progress, "[%6.1fs] %s\n", time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
}

// playGroup plays what is asked for of a group. Its set-up is made only for rows that can be played.
func (s *suite) playGroup(ctx context.Context, g group) (err error) {
	var rows []row
	for _, r := range g.rows {
		// Without the installation and the pods, nothing else means anything.
		if s.Only != nil && !s.Only.MatchString(g.full(r)) && !g.always {
			continue
		}
		if g.last && s.Keep {
			continue
		}
		if r.nodes && !s.NodeAccess {
			s.result.skip(g, r, "skipped: needs node access")
			continue
		}
		if r.where == acrossNodes && s.nodes[0] == s.nodes[1] {
			s.result.skip(g, r, "skipped: needs two nodes")
			continue
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		return nil
	}
	if g.teardown != nil {
		defer func() { err = errors.Join(err, g.teardown(context.WithoutCancel(ctx), s)) }()
	}
	if g.setup != nil {
		begin := time.Now()
		if err := g.setup(ctx, s); err != nil {
			if ctx.Err() != nil || g.always {
				return err
			}
			// The other groups can be played all the same.
			for _, r := range rows {
				s.add(g, r, time.Since(begin), "", fmt.Errorf("set-up: %w", err))
			}
			return nil
		}
		s.progress("%s: set up in %s", g.name, time.Since(begin).Round(100*time.Millisecond))
	}
	for _, r := range rows {
		limited, cancel := context.WithTimeoutCause(ctx, r.limitOr(time.Minute), fmt.Errorf("no end after %s", r.limitOr(time.Minute)))
		begin := time.Now()
		got, err := r.do(limited, s)
		if err != nil && limited.Err() != nil {
			err = errors.Join(context.Cause(limited), err)
		}
		cancel()
		s.add(g, r, time.Since(begin), got, err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && r.vital {
			return fmt.Errorf("%s: without it nothing else can be tested", r.name)
		}
	}
	return nil
}

func (s *suite) add(g group, r row, took time.Duration, got string, err error) {
	one := s.result.add(g, r, took, got, err)
	s.progress("%s", one.summary())
}

// clear removes the pods and policies of the tests, and Culvert itself if it is still there.
func (s *suite) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	var errs []error
	errs = append(errs, s.applyPolicies(ctx))
	namespaces := []string{"delete", "namespace", "--ignore-not-found", "--wait=false", walkNamespace, manyNamespace}
	for name := range demo.EnrolledNamespaces() {
		if name != "default" && (name != rootNamespace || s.madeRoot) {
			namespaces = append(namespaces, name)
		}
	}
	_, err := s.kubectl(ctx, namespaces...)
	errs = append(errs, err)
	_, err = s.kubectl(ctx, "delete", "pods,services,serviceaccounts", "--namespace=default", "--selector="+ours, "--ignore-not-found",
		"--wait=false", "--grace-period=1")
	errs = append(errs, err)
	_, err = s.kubectl(ctx, "label", "namespace", "default", "istio.io/dataplane-mode-")
	errs = append(errs, err)
	if s.before != nil {
		_, err = s.kubectl(ctx, "delete", "--kustomize="+s.Overlay, "--ignore-not-found", "--timeout=120s")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// diagnose collects what helps to find the cause of a failure, and returns the folder it is in.
func (s *suite) diagnose(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "culvert-e2e-")
	if err != nil {
		return "not collected: " + err.Error()
	}
	s.collect(ctx, dir)
	return dir
}
