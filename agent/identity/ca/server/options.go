// Package server is `culvert ca`: it certifies the identities of a node's pods for the agent of that node, over
// gRPC, and for nobody else.
package server

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
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
	NodeRate      float64              // certificates per second for one node; 50
	NodeBurst     int                  // at once for one node; 500
	Logger        *slog.Logger
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
	if o.SVIDLife == 0 {
		o.SVIDLife = defaultLife
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

// dnsNames are those of the TLS certificate.
func (o Options) dnsNames() []string {
	name := o.Service + "." + o.Namespace
	return append([]string{name + ".svc", name + ".svc." + o.ClusterDomain, name, o.Service}, o.Names...)
}
