package spiffe

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// api is one of the two that give the SVIDs of other workloads.
type api interface {
	String() string
	// probe returns nil when the API works and lets us in.
	probe(ctx context.Context) error
	// during runs while the API is the one in use, until ctx ends.
	during(ctx context.Context)
	// subscribe asks for the SVIDs of a workload and returns what waits for the next answer.
	subscribe(ctx context.Context, w identity.Workload) (next func() (*answer, error), err error)
	close() error
}

// answer is what the SPIFFE agent says of a workload. All that is binary is DER.
type answer struct {
	offers        []offer
	federatesWith []spiffeid.TrustDomain
	// federated are the roots of those. The Delegated Identity API tells them apart from the SVIDs: then it is nil.
	federated map[spiffeid.TrustDomain][]byte
}

// offer is one of the SVIDs in an answer.
type offer struct {
	id                   string
	chain, key, ownRoots []byte
}

// wipe forgets the keys: what is in use is a parsed copy.
func (a *answer) wipe() {
	for _, o := range a.offers {
		clear(o.key)
	}
}

// federate sorts the trust domains that the workload federates with.
func (a *answer) federate(names []string) error {
	for _, name := range names {
		td, err := spiffeid.TrustDomainFromString(name) // SPIRE writes them as SPIFFE IDs
		if err != nil {
			return fmt.Errorf("federated trust domain %q: %w", name, err)
		}
		a.federatesWith = append(a.federatesWith, td)
	}
	slices.SortFunc(a.federatesWith, spiffeid.TrustDomain.Compare)
	return nil
}

// maxHeaderBytes bounds what may come as an error's text.
const maxHeaderBytes = 64 << 10

// connect returns a connection that gRPC makes again whenever it is lost. Without security, the socket's owner is
// trusted by its place in the file system.
//
// There is no keep-alive: gRPC servers close connections that ping more than once in five minutes, and the end of a
// process ends its sockets.
func connect(address string, security *tls.Config, p pace) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if security != nil {
		creds = credentials.NewTLS(security)
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(), grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: p.probe, Backoff: backoff.Config{
			BaseDelay: p.retry, Multiplier: 1.6, Jitter: .3, MaxDelay: p.maxRetry}}))
	if err != nil {
		return nil, fmt.Errorf("SPIFFE address %s: %w", address, err)
	}
	return conn, nil
}

// sleep returns false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
