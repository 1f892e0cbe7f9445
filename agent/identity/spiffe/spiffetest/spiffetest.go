// Package spiffetest is a SPIFFE agent for tests: the real services on unix sockets, with answers and faults as told.
package spiffetest

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// SVID is one as it is sent: what is in it need not be right.
type SVID struct {
	ID         string
	Chain, Key []byte // DER
}

// Answer is what is sent about a pod.
type Answer struct {
	SVIDs         []SVID
	FederatesWith []spiffeid.TrustDomain
}

// Agent serves the Broker API, the Delegated Identity API and the Workload API, each on a socket of its own.
type Agent struct {
	TrustDomain spiffeid.TrustDomain

	t      testing.TB
	folder string

	mu      sync.Mutex
	root    *catest.CA // signs
	pods    map[string]Answer
	bundles map[spiffeid.TrustDomain][]byte
	own     SVID
	refuse  map[string]error
	delay   time.Duration
	opened  map[string]int
	streams int
	changed chan struct{} // closed and replaced at each change
	reset   chan struct{} // closed and replaced to end all streams
	stop    func()
}

// The services' names for Refuse and Opened.
const (
	Broker      = "broker"
	Delegated   = "delegated"
	WorkloadAPI = "workload"
)

// Start starts an Agent whose roots are one self-signed CA and which gives the client an SVID of its own.
func Start(t testing.TB, td spiffeid.TrustDomain) *Agent {
	t.Helper()
	a := &Agent{TrustDomain: td, t: t, folder: t.TempDir(), pods: map[string]Answer{}, refuse: map[string]error{}, opened: map[string]int{},
		bundles: map[spiffeid.TrustDomain][]byte{}, changed: make(chan struct{}), reset: make(chan struct{}), stop: func() {}}
	a.root = catest.Root(t, td.Name())
	a.Trust(td, a.root)
	a.own = a.Mint(a.client())
	a.Run()
	t.Cleanup(a.Stop)
	return a
}

func (a *Agent) client() spiffeid.ID {
	return spiffeid.RequireFromPath(a.TrustDomain, "/culvert-agent")
}

// Address returns where a service is.
func (a *Agent) Address(service string) string { return "unix://" + a.socket(service) }

func (a *Agent) socket(service string) string { return filepath.Join(a.folder, service+".sock") }

// Run serves again after Stop.
func (a *Agent) Run() {
	a.t.Helper()
	secure := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsconfig.MTLSServerConfig(a, a, tlsconfig.AuthorizeID(a.client())))))
	broker.RegisterAPIServer(secure, brokerService{agent: a})
	admin, public := grpc.NewServer(), grpc.NewServer()
	delegated.RegisterDelegatedIdentityServer(admin, delegatedService{agent: a})
	workload.RegisterSpiffeWorkloadAPIServer(public, workloadService{agent: a})
	var served sync.WaitGroup
	servers := map[string]*grpc.Server{Broker: secure, Delegated: admin, WorkloadAPI: public}
	for service, server := range servers {
		l, err := net.Listen("unix", a.socket(service))
		if err != nil {
			a.t.Fatal(err)
		}
		served.Go(func() {
			if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				a.t.Error(err)
			}
		})
	}
	a.stop = sync.OnceFunc(func() {
		for _, server := range servers {
			server.Stop()
		}
		served.Wait()
	})
}

// Stop ends everything that is served, as the end of the process would.
func (a *Agent) Stop() { a.stop() }

// Mint makes an SVID; alter, if any, is applied to the certificate before it is signed.
func (a *Agent) Mint(id spiffeid.ID, alter ...func(*x509.Certificate)) SVID {
	a.t.Helper()
	a.mu.Lock()
	root := a.root
	a.mu.Unlock()
	return MintBy(a.t, root, id, alter...)
}

// MintBy is Mint with another signer.
func MintBy(t testing.TB, ca *catest.CA, id spiffeid.ID, alter ...func(*x509.Certificate)) SVID {
	t.Helper()
	key := catest.Key(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	named := func(c *x509.Certificate) { c.URIs = []*url.URL{id.URL()} }
	leaf := ca.Leaf(t, &key.PublicKey, append([]func(*x509.Certificate){named}, alter...)...)
	return SVID{ID: id.String(), Chain: leaf.Raw, Key: der}
}

// Sign has ca sign from now on.
func (a *Agent) Sign(ca *catest.CA) { a.alter(func() { a.root = ca }) }

// Trust makes cas the roots of a trust domain; none: it is unknown.
func (a *Agent) Trust(td spiffeid.TrustDomain, cas ...*catest.CA) {
	a.alter(func() {
		delete(a.bundles, td)
		for _, ca := range cas {
			a.bundles[td] = append(a.bundles[td], ca.Cert.Raw...)
		}
	})
}

// Give makes the answer for the pod of that UID, now and in all streams that ask for it.
func (a *Agent) Give(uid string, answer Answer) { a.GiveAll(map[string]Answer{uid: answer}) }

// GiveAll is Give for many pods at once.
func (a *Agent) GiveAll(answers map[string]Answer) { a.alter(func() { maps.Copy(a.pods, answers) }) }

// Refuse ends the streams of a service with err and refuses new ones, until err is nil.
func (a *Agent) Refuse(service string, err error) {
	a.alter(func() { a.refuse[service] = err })
	a.Reset()
}

// Delay lets each new stream for a known pod wait before its first answer.
func (a *Agent) Delay(d time.Duration) { a.alter(func() { a.delay = d }) }

// Reset ends all streams.
func (a *Agent) Reset() {
	a.alter(func() {
		close(a.reset)
		a.reset = make(chan struct{})
	})
}

// Opened returns how many streams for known pods a service has been asked for.
func (a *Agent) Opened(service string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.opened[service]
}

// Streams returns how many streams for known pods there are.
func (a *Agent) Streams() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.streams
}

func (a *Agent) alter(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

// GetX509SVID implements x509svid.Source for the broker's end of TLS.
func (a *Agent) GetX509SVID() (*x509svid.SVID, error) {
	s := a.Mint(spiffeid.RequireFromPath(a.TrustDomain, "/spire/agent/test"))
	return x509svid.ParseRaw(s.Chain, s.Key)
}

// GetX509BundleForTrustDomain implements x509bundle.Source for the broker's end of TLS.
func (a *Agent) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := x509bundle.ParseRaw(td, a.bundles[td])
	if err != nil {
		return nil, fmt.Errorf("roots of %s: %w", td, err)
	}
	return b, nil
}
