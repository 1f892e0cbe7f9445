package server

import (
	"bytes"
	"crypto/tls"
	"maps"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const issue = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// raw is a connection on which anything can be sent. What comes back is counted.
type raw struct {
	net.Conn
	framer *http2.Framer
	w      *bytes.Buffer
	next   uint32

	mu     sync.Mutex
	ended  map[uint32]string // stream: grpc-status
	closed chan struct{}
}

func dialRaw(t *testing.T, address string) *raw {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{Conn: conn, w: &bytes.Buffer{}, next: 1, ended: map[uint32]string{}, closed: make(chan struct{})}
	r.framer = http2.NewFramer(r.w, conn)
	r.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.w.WriteString(http2.ClientPreface)
	if err := r.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	r.flush(t)
	go r.read()
	t.Cleanup(func() { conn.Close(); <-r.closed })
	return r
}

func (r *raw) flush(t *testing.T) {
	t.Helper()
	if _, err := r.Write(r.w.Bytes()); err != nil {
		t.Error(err)
	}
	r.w.Reset()
}

func (r *raw) read() {
	defer close(r.closed)
	for {
		f, err := r.framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				if field.Name == "grpc-status" {
					r.mu.Lock()
					r.ended[f.StreamID] = field.Value
					r.mu.Unlock()
				}
			}
		}
	}
}

// half begins a request of size bytes and sends it but for the last, in frames of each bytes.
func (r *raw) half(t *testing.T, method, token string, size, each int) {
	t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	fields := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "ca"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}
	if token != "" {
		fields = append(fields, hpack.HeaderField{Name: wire.AuthorizationKey, Value: "Bearer " + token})
	}
	for _, f := range fields {
		if err := e.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	id := r.next
	r.next += 2
	if err := r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	body := append([]byte{0, 0, byte(size >> 16), byte(size >> 8), byte(size)}, make([]byte, size-1)...)
	for len(body) > 0 {
		n := min(each, len(body))
		if err := r.framer.WriteData(id, false, body[:n]); err != nil {
			t.Fatal(err)
		}
		body = body[n:]
	}
	r.flush(t)
}

func (r *raw) statuses() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for _, s := range r.ended {
		counts[s]++
	}
	return counts
}

func heapMB() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse >> 20)
}

const (
	deadlineExceeded  = "4"
	resourceExhausted = "8"
	unauthenticatedIs = "16"
	canceled          = "1"
)

// await waits until so many of the connections' requests have ended with each status.
func await(t *testing.T, all []*raw, want map[string]int) {
	t.Helper()
	var got map[string]int
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		got = map[string]int{}
		for _, r := range all {
			for status, n := range r.statuses() {
				got[status] += n
			}
		}
		if maps.Equal(got, want) {
			return
		}
	}
	t.Fatalf("requests ended with %v, want %v", got, want)
}

// TestHalfSentRequestsAreBoundedAndEnd has one address send as much as it can without ever ending a request.
func TestHalfSentRequestsAreBoundedAndEnd(t *testing.T) {
	s := &changing{now: below(t), changed: make(chan struct{})}
	address, _, _ := telling(t, s)
	agent := watch(t, connect(t, address, s.Authority().Roots()))
	if _, err := agent.Recv(); err != nil {
		t.Fatal(err)
	}
	before := heapMB()
	var all []*raw
	for i := range 20 {
		r := dialRaw(t, address)
		all = append(all, r)
		for range maxStreams {
			switch {
			case i < 8:
				r.half(t, issue, "", 32000, 16000)
			case i < 16:
				r.half(t, issue, "guess", 32000, 16)
			default:
				r.half(t, bundlepb.TrustBundle_Watch_FullMethodName, "", 32000, 16)
			}
		}
	}
	const watches = maxWatchesOfAddress - 1 // beside the agent's
	refused := map[string]int{unauthenticatedIs: 8 * maxStreams,
		resourceExhausted: 8*maxStreams - maxRequestsOfAddress + 4*maxStreams - watches}
	await(t, all, refused)
	if grown := heapMB() - before; grown > 64 {
		t.Errorf("%d MB are kept of one address's requests", grown)
	}
	refused[deadlineExceeded], refused[canceled] = maxRequestsOfAddress, watches
	await(t, all, refused)
	for _, r := range all {
		select {
		case <-r.closed:
		case <-time.After(2*idleTimeout + drainTimeout):
			t.Fatal("a connection without requests stays open")
		}
	}
	s.set(authority(t, newRoot(t)))
	if _, err := agent.Recv(); err != nil {
		t.Errorf("the agent's stream: %v", err)
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	s := start(t, callers(), placed(), nil)
	var all []*raw
	for range maxConnectionsOfAddress {
		all = append(all, dialRaw(t, s.address))
	}
	insecure := &tls.Config{InsecureSkipVerify: true}
	if c, err := tls.Dial("tcp", s.address, insecure); err == nil {
		c.Close()
		t.Fatal("one more connection than an address may have")
	}
	if n := testutil.ToFloat64(s.metrics.connsRefused); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
	all[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := tls.Dial("tcp", s.address, insecure)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the place of a closed connection is not given back: %v", err)
		}
	}
}
