package spire

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/culvert-mesh/culvert/agent/identity"
)

const joinToken = "e2e"

// server is a SPIRE server and its API.
type server struct {
	*process
	folder string
	port   int
	conn   *grpc.ClientConn
}

func startServer(t *testing.T, programs, folder string) *server {
	t.Helper()
	s := &server{folder: folder, port: freePort(t)}
	s.process = start(t, filepath.Join(programs, "spire-server"), folder, serverConfig(folder, s.port))
	s.run()
	conn, err := grpc.NewClient("unix://"+folder+"/server.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	s.conn = conn
	eventually(t, "server", func() bool { _, err := os.Stat(folder + "/server.sock"); return err == nil })
	return s
}

func id(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: domainName, Path: path} }

// admit makes a join token, and writes what the agent needs to know the server.
func (s *server) admit(t *testing.T) {
	t.Helper()
	b, err := bundlev1.NewBundleClient(s.conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, c := range b.GetX509Authorities() {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.GetAsn1()})...)
	}
	if err := os.WriteFile(filepath.Join(s.folder, "bootstrap.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = agentv1.NewAgentClient(s.conn).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600, Token: joinToken})
	if err != nil {
		t.Fatal(err)
	}
}

// register makes an entry and returns what removes it.
func (s *server) register(t *testing.T, who spiffeid.ID, life int32, federatesWith []string, selectors ...string) (remove func()) {
	t.Helper()
	e := &types.Entry{SpiffeId: id(who.Path()), ParentId: id("/spire/agent/join_token/" + joinToken), X509SvidTtl: life, FederatesWith: federatesWith}
	for _, sel := range selectors {
		kind, value, _ := strings.Cut(sel, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: kind, Value: value})
	}
	api := entryv1.NewEntryClient(s.conn)
	r, err := api.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil || codes.Code(r.GetResults()[0].GetStatus().GetCode()) != codes.OK {
		t.Fatalf("entry not created: %v, %v", r, err)
	}
	key := r.GetResults()[0].GetEntry().GetId()
	return func() {
		t.Helper()
		if _, err := api.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{key}}); err != nil {
			t.Fatal(err)
		}
	}
}

// pod registers a pod by the selectors that both APIs know.
func (s *server) pod(t *testing.T, w identity.Workload, life int32, federatesWith ...string) (remove func()) {
	t.Helper()
	return s.register(t, w.ID, life, federatesWith, "k8s:ns:"+w.Namespace, "k8s:sa:"+w.ServiceAccount)
}

// federate sets the roots of a foreign trust domain.
func (s *server) federate(t *testing.T, name string, roots ...*x509.Certificate) {
	t.Helper()
	b := &types.Bundle{TrustDomain: name}
	for _, c := range roots {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: c.Raw})
	}
	r, err := bundlev1.NewBundleClient(s.conn).BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
	if err != nil || codes.Code(r.GetResults()[0].GetStatus().GetCode()) != codes.OK {
		t.Fatalf("bundle not set: %v, %v", r, err)
	}
}

// kubelet is as much of one as SPIRE's agent asks: its list of pods.
type kubelet struct {
	port int
	mu   sync.Mutex
	pods []map[string]any
}

func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{port: l.Addr().(*net.TCPAddr).Port}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if err := json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1", "items": k.pods}); err != nil {
			t.Error(err)
		}
	})
	web := &http.Server{Handler: mux}
	var served sync.WaitGroup
	served.Go(func() { _ = web.Serve(l) })
	t.Cleanup(func() { _ = web.Close(); served.Wait() })
	return k
}

// add has a pod run.
func (k *kubelet) add(w identity.Workload) identity.Workload {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods = append(k.pods, map[string]any{
		"metadata": map[string]any{"namespace": w.Namespace, "name": w.Pod, "uid": w.UID},
		"spec":     map[string]any{"serviceAccountName": w.ServiceAccount, "nodeName": "node"},
		"status":   map[string]any{"phase": "Running"},
	})
	return w
}
