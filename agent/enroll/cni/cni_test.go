package cni

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// handler answers as its fields say, and remembers what it was asked.
type handler struct {
	mu    sync.Mutex
	asked []*Request
	add   func(ctx context.Context, r *Request, netns *os.File) (Response, error)
	err   error
}

func (h *handler) note(r *Request) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, r)
	return h.err
}

func (h *handler) last() *Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) == 0 {
		return nil
	}
	return h.asked[len(h.asked)-1]
}

func (h *handler) Add(ctx context.Context, r *Request, netns *os.File) (Response, error) {
	err := h.note(r)
	if h.add != nil {
		return h.add(ctx, r, netns)
	}
	return Response{Enrolled: true}, err
}

func (h *handler) Check(_ context.Context, r *Request, _ *os.File) error { return h.note(r) }
func (h *handler) Delete(_ context.Context, r *Request) error            { return h.note(r) }
func (h *handler) GC(_ context.Context, r *Request) error                { return h.note(r) }
func (h *handler) Status(context.Context) error                          { return h.note(&Request{Command: Status}) }

// serveOn serves h on a socket of its own until the test ends, or stop is called.
func serveOn(t *testing.T, path string, h Handler) (stop func()) {
	t.Helper()
	l, err := Listen(path)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-done, l.Close()); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func socketPath(t *testing.T) string { return filepath.Join(t.TempDir(), "cni.sock") }

func openNetns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func addRequest() *Request {
	return &Request{Command: Add, ContainerID: "c1", IfName: "eth0", NetnsPath: "/run/netns/x", PodNamespace: "ns", PodName: "pod",
		PodUID: "uid", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
}

func TestAdd(t *testing.T) {
	path := socketPath(t)
	netns := openNetns(t)
	h := &handler{}
	h.add = func(ctx context.Context, r *Request, got *os.File) (Response, error) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 5*time.Second {
			t.Errorf("deadline %v, %v", deadline, ok)
		}
		a, errA := got.Stat()
		b, errB := netns.Stat()
		if errA != nil || errB != nil || !os.SameFile(a, b) {
			t.Errorf("another descriptor arrived: %v, %v", errA, errB)
		}
		return Response{Enrolled: true, Reason: "namespace label"}, nil
	}
	serveOn(t, path, h)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answer, err := Call(ctx, path, addRequest(), netns)
	if err != nil || !answer.Enrolled || answer.Reason != "namespace label" {
		t.Fatalf("got %+v, %v", answer, err)
	}
	got := h.last()
	if got.PodName != "pod" || got.PodUID != "uid" || len(got.Addresses) != 2 || got.Addresses[1] != netip.MustParseAddr("fd00::1") {
		t.Errorf("asked %+v", got)
	}
}

func TestErrors(t *testing.T) {
	path := socketPath(t)
	h := &handler{}
	serveOn(t, path, h)
	for name, tc := range map[string]struct {
		command string
		err     error
		want    Error
	}{
		"plain, add":    {Add, errors.New("no"), Error{Code: CodeTryAgain, Msg: "no"}},
		"plain, check":  {Check, errors.New("no"), Error{Code: CodeNotEnforced, Msg: "no"}},
		"plain, del":    {Delete, errors.New("no"), Error{Code: CodeTryAgain, Msg: "no"}},
		"plain, status": {Status, errors.New("no"), Error{Code: CodeUnavailable, Msg: "no"}},
		"chosen":        {Add, &Error{Code: 123, Msg: "m", Details: "d", Retry: true}, Error{Code: 123, Msg: "m", Details: "d", Retry: true}},
		"no code":       {Add, &Error{Msg: "m", Retry: true}, Error{Code: CodeTryAgain, Msg: "m", Retry: true}},
		"huge":          {Add, errors.New(strings.Repeat("\x01", 100_000)), Error{Code: CodeTryAgain, Msg: strings.Repeat("\x01", 3<<10)}},
	} {
		h.mu.Lock()
		h.err = tc.err
		h.mu.Unlock()
		r := addRequest()
		r.Command = tc.command
		var netns *os.File
		if r.needsNetns() {
			netns = openNetns(t)
		}
		answer, err := Call(t.Context(), path, r, netns)
		if err != nil || answer.Error == nil || *answer.Error != tc.want {
			t.Errorf("%s: got %+v, %v", name, answer, err)
		}
	}
}

func TestGCOfManyAttachments(t *testing.T) {
	path := socketPath(t)
	h := &handler{}
	serveOn(t, path, h)
	r := &Request{Command: GC}
	for i := range 2345 {
		r.Valid = append(r.Valid, Attachment{ContainerID: strings.Repeat("f", 64), IfName: "eth" + string(rune('0'+i%10))})
	}
	answer, err := Call(t.Context(), path, r, nil)
	if err != nil || answer.Error != nil || len(h.last().Valid) != len(r.Valid) {
		t.Fatalf("got %+v, %v, %d attachments", answer, err, len(h.last().Valid))
	}
	r.Valid = make([]Attachment, maxAttachments+1)
	if _, err := Call(t.Context(), path, r, nil); err == nil {
		t.Error("more than the bound were sent")
	}
}

func TestAwayAgent(t *testing.T) {
	path := socketPath(t)
	if _, err := Call(t.Context(), path, &Request{Command: Status}, nil); !errors.Is(err, ErrAway) {
		t.Errorf("no socket: %v", err)
	}
	stale, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	must(t, err)
	stale.SetUnlinkOnClose(false)
	must(t, stale.Close())
	if _, err := Call(t.Context(), path, &Request{Command: Status}, nil); !errors.Is(err, ErrAway) {
		t.Errorf("nobody listens: %v", err)
	}
	serveOn(t, path, &handler{}) // over the stale one
	if answer, err := Call(t.Context(), path, &Request{Command: Status}, nil); err != nil || answer.Error != nil {
		t.Errorf("listening again: %v, %v", answer, err)
	}
}

// TestEndOfWaiting: the handler's context ends when the plugin goes away, when its time is up, and when Serve ends.
func TestEndOfWaiting(t *testing.T) {
	path := socketPath(t)
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	h := &handler{add: func(ctx context.Context, _ *Request, _ *os.File) (Response, error) {
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return Response{}, ctx.Err()
	}}
	stop := serveOn(t, path, h)
	netns := openNetns(t)

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if _, err := Call(ctx, path, addRequest(), netns); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("handler: %v", err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	answer, err := Call(ctx, path, addRequest(), netns)
	if err != nil || answer.Error == nil || !answer.Error.Retry {
		t.Errorf("time up: %+v, %v", answer, err)
	}
	<-began
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handler: %v", err)
	}

	go func() { <-began; stop() }()
	answer, err = Call(t.Context(), path, addRequest(), netns)
	if err != nil || answer.Error == nil || !answer.Error.Retry || answer.Error.Code != CodeUnavailable {
		t.Errorf("agent stops: %+v, %v", answer, err)
	}
}

func TestListen(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	must(t, err)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("second listener: %v", err)
	}
	must(t, os.Remove(path+".lock")) // somebody cleaned up: the socket itself still tells
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("second listener without the lock: %v", err)
	}
	_ = l.Close()
	_ = l.Close()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := Listen(path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Error("a file was replaced")
	}
	if _, err := Listen(filepath.Join(filepath.Dir(path), "none", "cni.sock")); err == nil {
		t.Error("listened in a folder that is not there")
	}
}

// TestManyListenAtOnce: of many that start at once over a stale socket, one gets it, again and again.
func TestManyListenAtOnce(t *testing.T) {
	path := socketPath(t)
	for range 20 {
		var all sync.WaitGroup
		got := make(chan *Listener, 8)
		for range 8 {
			all.Go(func() {
				if l, err := Listen(path); err == nil {
					got <- l
				} else if !errors.Is(err, ErrInUse) {
					t.Errorf("Listen: %v", err)
				}
			})
		}
		all.Wait()
		if len(got) != 1 {
			t.Fatalf("%d listeners", len(got))
		}
		l := <-got
		c, err := net.Dial(network, path)
		must(t, err)
		_ = c.Close()
		must(t, l.Close())
	}
}
