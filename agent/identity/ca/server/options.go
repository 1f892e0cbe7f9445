// Package server is `culvert ca`: it certifies the identities of a node's pods for the agent of that node, over
// gRPC, and for nobody else.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// Options configure a CA. Namespace, TrustDomain and Logger are required; the zero value of anything else stands for
// what its comment names.
type Options struct {
	Kubeconfig    string               // empty: the cluster in which this process runs
	Namespace     string               // of the CA's objects and its Service
	TrustDomain   spiffeid.TrustDomain // of the identities
	Address       string               // gRPC; ":15012"
	StatusAddress string               // /healthz, /readyz and /metrics; ":15022"
	Audiences     []string             // a token must be for one of them; culvert-ca
	Accounts      []string             // the agents', as namespace/name; culvert-agent in Namespace
	Service       string               // name of the CA's Service; culvert-ca
	ClusterDomain string               // cluster.local
	Names         []string             // further DNS names under which the CA is reached
	SVIDLife      time.Duration        // of what asks for none, and the longest; 24 h
	// Of a CA that makes its root itself.
	IntermediateLife time.Duration // replaced at half of it; 30 days
	RootLife         time.Duration // replaced at 80 % of it; ten years
	RootOverlap      time.Duration // within it, all who verify have learned a new root; 1 h
	LeaseDuration    time.Duration // for which a leader that is gone without a word is waited for; kube.LeaseDuration
	Identity         string        // of this replica in the election; the host's name and a random part
	// RequireAddress refuses an agent's token from an address that is neither its pod's nor its node's.
	RequireAddress bool
	NodeRate       float64 // certificates per second for one node; 50
	NodeBurst      int     // at once for one node; 500
	Logger         *slog.Logger
	Collectors     []prometheus.Collector // of the process, for /metrics
	// ServeStatus serves metrics at /metrics, and health elsewhere, on l until ctx ends: the process knows how many may ask
	// at once. Without it nobody does.
	ServeStatus func(ctx context.Context, l net.Listener, metrics prometheus.Gatherer, health http.Handler) error
}

const (
	defaultAudience      = "culvert-ca"
	defaultAccount       = "culvert-agent"
	defaultService       = "culvert-ca"
	defaultClusterDomain = "cluster.local"
	defaultLife          = 24 * time.Hour
	// A node that starts wants one for each of its service accounts, of which it has some hundreds at most.
	defaultNodeRate  = 50
	defaultNodeBurst = 500
	minLife          = time.Second

	defaultIntermediateLife = 30 * 24 * time.Hour
	defaultRootLife         = 10 * 365 * 24 * time.Hour
	defaultRootOverlap      = time.Hour
	minRootOverlap          = time.Second
)

// complete fills in the defaults and checks the rest.
func (o Options) complete() (Options, error) {
	switch {
	case o.Logger == nil:
		return o, errors.New("CA: no logger")
	case o.Namespace == "":
		return o, errors.New("CA: no namespace")
	case o.TrustDomain.IsZero():
		return o, errors.New("CA: no trust domain")
	}
	orText(&o.Address, ":15012")
	orText(&o.StatusAddress, ":15022")
	orText(&o.Service, defaultService)
	orText(&o.ClusterDomain, defaultClusterDomain)
	if len(o.Audiences) == 0 {
		o.Audiences = []string{defaultAudience}
	}
	if len(o.Accounts) == 0 {
		o.Accounts = []string{o.Namespace + "/" + defaultAccount}
	}
	orTime(&o.SVIDLife, defaultLife)
	orTime(&o.IntermediateLife, defaultIntermediateLife)
	orTime(&o.RootLife, defaultRootLife)
	orTime(&o.RootOverlap, defaultRootOverlap)
	orTime(&o.LeaseDuration, kube.LeaseDuration)
	if o.Identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("CA: the host's name: %w", err)
		}
		o.Identity = host + "_" + strings.ToLower(rand.Text()[:8])
	}
	if o.NodeRate == 0 {
		o.NodeRate = defaultNodeRate
	}
	if o.NodeBurst == 0 {
		o.NodeBurst = defaultNodeBurst
	}
	for _, a := range o.Accounts {
		if namespace, name, ok := strings.Cut(a, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return o, fmt.Errorf("CA: account %q: want namespace/name", a)
		}
	}
	if o.SVIDLife < minLife {
		return o, fmt.Errorf("CA: SVID life %s is less than %s", o.SVIDLife, minLife)
	}
	if o.RootOverlap < minRootOverlap {
		return o, fmt.Errorf("CA: overlap of roots %s is less than %s", o.RootOverlap, minRootOverlap)
	}
	if err := o.policy().Check(); err != nil {
		return o, fmt.Errorf("CA: %w", err)
	}
	if o.NodeRate < 0 || o.NodeBurst < 0 {
		return o, errors.New("CA: negative rate limit")
	}
	return o, nil
}

func orText(s *string, otherwise string) {
	if *s == "" {
		*s = otherwise
	}
}

func orTime(d *time.Duration, otherwise time.Duration) {
	if *d == 0 {
		*d = otherwise
	}
}

func (o Options) policy() rotation.Policy {
	return rotation.Policy{Root: o.RootLife, Intermediate: o.IntermediateLife, SVID: o.SVIDLife, Overlap: o.RootOverlap}
}

// dnsNames are those of the TLS certificate.
func (o Options) dnsNames() []string {
	name := o.Service + "." + o.Namespace
	return append([]string{name + ".svc", name + ".svc." + o.ClusterDomain, name, o.Service}, o.Names...)
}
