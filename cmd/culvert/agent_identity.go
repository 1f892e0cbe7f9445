package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
	"github.com/culvert-mesh/culvert/agent/identity/pemdir"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe"
)

// minSVIDLife keeps renewals at half life from becoming a load.
const minSVIDLife = 2 * time.Second

// identityFlags say where SVIDs come from.
type identityFlags struct {
	trustDomain string
	aliases     []string
	svidLife    time.Duration

	caAddress, caToken, caRoots, caName, clusterID string
	broker, spireAdmin, workloadAPI                string
	folder                                         string
	caCert, caKey                                  string
}

func (f *identityFlags) register(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.trustDomain, "trust-domain", "cluster.local", "SPIFFE trust domain")
	flags.StringSliceVar(&f.aliases, "trust-domain-alias", nil, "other name of the trust domain, whose members are peers too, repeatable")
	flags.DurationVar(&f.svidLife, "svid-ttl", 24*time.Hour, "life of the certificates that are asked for; renewed at half of it")
	flags.StringVar(&f.caAddress, "ca-address", "", "SVIDs from a certificate authority (IstioCertificateService): host:port of 'culvert ca' or istiod")
	flags.StringVar(&f.caToken, "ca-token", "/var/run/secrets/culvert/token", "file with the agent's token for the certificate authority")
	flags.StringVar(&f.caRoots, "ca-roots", "/var/run/secrets/culvert/root/root-cert.pem", "PEM file of the trust domain's roots, followed while it changes")
	flags.StringVar(&f.caName, "ca-server-name", "", "name in the authority's certificate (default: the host of --ca-address)")
	flags.StringVar(&f.clusterID, "cluster-id", "Kubernetes", "this cluster's name, as Istio's authority knows it and metrics show it")
	flags.StringVar(&f.broker, "spiffe-broker", "", "SVIDs from SPIFFE: unix:///path of the Broker API, which needs --spiffe-workload-api too")
	flags.StringVar(&f.spireAdmin, "spiffe-admin", "", "SVIDs from SPIRE: unix:///path of its agent's admin socket (Delegated Identity API); beside --spiffe-broker for when that fails")
	flags.StringVar(&f.workloadAPI, "spiffe-workload-api", "", "unix:///path of the SPIFFE Workload API, for the agent's own identity")
	flags.StringVar(&f.folder, "svid-dir", "", "SVIDs from files: DIR/roots.pem and DIR/NAMESPACE/ACCOUNT/tls.crt and tls.key, followed while they change")
	flags.StringVar(&f.caCert, "ca-cert", "", "SVIDs from this agent's own authority: PEM file of the root certificate; without any source a root of this process alone is made")
	flags.StringVar(&f.caKey, "ca-key", "", "PEM file of the root's key")
}

// sources names those that were asked for.
func (f *identityFlags) sources() []string {
	var all []string
	for _, s := range []struct {
		name string
		set  bool
	}{
		{"--ca-address", f.caAddress != ""},
		{"--spiffe-broker or --spiffe-admin", f.broker != "" || f.spireAdmin != ""},
		{"--svid-dir", f.folder != ""},
		{"--ca-cert", f.caCert != "" || f.caKey != ""},
	} {
		if s.set {
			all = append(all, s.name)
		}
	}
	return all
}

func (f *identityFlags) check(kube bool) error {
	switch all := f.sources(); {
	case len(all) > 1:
		return usage("agent: %s exclude each other: SVIDs come from one place", strings.Join(all, " and "))
	case len(all) == 0 && kube:
		return usage("agent: --kube needs a source of SVIDs (--ca-address, --spiffe-broker, --spiffe-admin or --svid-dir):" +
			" every agent with a root of its own would trust nobody")
	case f.svidLife < minSVIDLife:
		return usage("agent: --svid-ttl %s is less than %s", f.svidLife, minSVIDLife)
	}
	return nil
}

// domains returns the trust domain and its aliases.
func (f *identityFlags) domains() (own spiffeid.TrustDomain, aliases []spiffeid.TrustDomain, err error) {
	if own, err = spiffeid.TrustDomainFromString(f.trustDomain); err != nil {
		return own, nil, usage("--trust-domain %q: %w", f.trustDomain, err)
	}
	for _, name := range f.aliases {
		alias, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return own, nil, usage("--trust-domain-alias %q: %w", name, err)
		}
		aliases = append(aliases, alias)
	}
	return own, aliases, nil
}

// issuer returns the source of SVIDs and what ends it.
func (f *identityFlags) issuer(td spiffeid.TrustDomain, log *slog.Logger) (identity.Issuer, func(), error) {
	switch {
	case f.caAddress != "":
		client, err := istio.New(istio.Options{
			Address: f.caAddress, TokenFile: f.caToken, RootsFile: f.caRoots, TrustDomain: td,
			ClusterID: f.clusterID, ServerName: f.caName, Life: f.svidLife, Logger: log,
		})
		if err != nil {
			return nil, nil, err
		}
		return client, func() { client.Close() }, nil
	case f.broker != "" || f.spireAdmin != "":
		client, err := spiffe.New(spiffe.Options{
			Broker: f.broker, Admin: f.spireAdmin, WorkloadAPI: f.workloadAPI, TrustDomain: td, Logger: log,
		})
		if err != nil {
			return nil, nil, err
		}
		return client, func() { client.Close() }, nil
	case f.folder != "":
		folder, err := pemdir.New(pemdir.Options{Dir: f.folder, TrustDomain: td, Logger: log})
		if err != nil {
			return nil, nil, fmt.Errorf("--svid-dir: %w", err)
		}
		return folder, folder.Close, nil
	}
	authority, err := f.authority(td)
	if err != nil {
		return nil, nil, err
	}
	return &identity.InProcess{Authority: authority, Life: f.svidLife}, func() {}, nil
}

// authority is the CA given by files, or one of this process alone.
func (f *identityFlags) authority(td spiffeid.TrustDomain) (*ca.Authority, error) {
	if f.caCert == "" && f.caKey == "" {
		return ca.New(td)
	}
	if f.caCert == "" || f.caKey == "" {
		return nil, usage("agent: --ca-cert and --ca-key go together")
	}
	cert, err := os.ReadFile(f.caCert)
	if err != nil {
		return nil, fmt.Errorf("--ca-cert: %w", err)
	}
	key, err := os.ReadFile(f.caKey)
	if err != nil {
		return nil, fmt.Errorf("--ca-key: %w", err)
	}
	defer clear(key)
	return ca.FromPEM(td, cert, key)
}
