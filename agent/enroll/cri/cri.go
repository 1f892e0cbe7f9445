// Package cri asks the node's container runtime which network namespace a running pod has.
//
// It speaks the Container Runtime Interface (runtime.v1) to containerd or CRI-O over their unix socket and only
// ever reads. What it opens is the runtime's word; that the namespace carries the pod's addresses is for
// agent/enroll to prove.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/culvert-mesh/culvert/agent/enroll"
)

const (
	// callTimeout ends a call to a runtime that hangs. A busy containerd answers in milliseconds.
	callTimeout = 5 * time.Second
	dialTimeout = 2 * time.Second
	// maxMessage is what kubelet allows a runtime too: a list of some thousand sandboxes.
	maxMessage = 16 << 20
	// maxStatusCalls bounds how many sandboxes are asked about at a time.
	maxStatusCalls = 8
)

var (
	// ErrNotRunning says that the runtime has no ready sandbox for the pod: not yet, or no more.
	ErrNotRunning = enroll.ErrNotRunning
	// ErrHostNetwork says that the pod shares the node's namespace and has none of its own.
	ErrHostNetwork = errors.New("is a host network pod")
	// ErrNoSocket says that no container runtime answers where they usually do.
	ErrNoSocket = errors.New("no container runtime found")
)

// KnownSockets are the places where runtimes listen, in the order in which "auto" tries them.
func KnownSockets() []string {
	return []string{
		"/run/containerd/containerd.sock",
		"/var/run/crio/crio.sock",
		"/run/k3s/containerd/containerd.sock",
		"/run/k0s/containerd.sock",
		"/var/snap/microk8s/common/run/containerd.sock",
	}
}

// Options say where the runtime is. The zero value is right on most nodes.
type Options struct {
	// Socket is the runtime's unix socket, with or without unix://. "" and "auto" stand for the first of
	// KnownSockets that answers.
	Socket string
	// ProcRoot is the proc file system of the node's process ids; "" stands for /proc.
	ProcRoot string
	Logger   *slog.Logger // nil: silent
}

// Runtime is a connection to the node's container runtime. It is made anew by itself whenever the runtime
// comes back; calls made meanwhile fail at once. Its methods may be called concurrently.
type Runtime struct {
	proc    string
	log     *slog.Logger
	sockets []string
	conn    *grpc.ClientConn
	client  runtime.RuntimeServiceClient

	mu     sync.Mutex
	socket string // the one that was dialed last
}

// New returns a Runtime that dials at the first call. Close it.
func New(o Options) (*Runtime, error) {
	r := &Runtime{proc: o.ProcRoot, log: o.Logger, sockets: KnownSockets()}
	if r.proc == "" {
		r.proc = "/proc"
	}
	if r.log == nil {
		r.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Socket != "" && o.Socket != "auto" {
		r.sockets = []string{strings.TrimPrefix(o.Socket, "unix://")}
	}
	// The dialer chooses the socket each time, so that a runtime which comes back elsewhere is found too.
	conn, err := grpc.NewClient("passthrough:///cri",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx) }),
		grpc.WithNoProxy(),
		grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// A restart takes a second or two, and pods wait for us: never the two minutes of the default.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	r.conn, r.client = conn, runtime.NewRuntimeServiceClient(conn)
	return r, nil
}

// Close ends the connection.
func (r *Runtime) Close() error { return r.conn.Close() }

// Version is the runtime's name and version and the socket it answers on, for people.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	v, err := r.client.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return "", fmt.Errorf("container runtime: version: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%s %s at %s", v.RuntimeName, v.RuntimeVersion, r.socket), nil
}

func (r *Runtime) dial(ctx context.Context) (net.Conn, error) {
	ctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	var failed []error
	for _, socket := range r.sockets {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			r.dialed(socket)
			return conn, nil
		}
		// Of the usual places, those that exist are worth a word.
		if len(r.sockets) == 1 || !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 {
		return nil, fmt.Errorf("%w at %s", ErrNoSocket, strings.Join(r.sockets, ", "))
	}
	return nil, errors.Join(failed...)
}

func (r *Runtime) dialed(socket string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.socket != socket {
		r.log.Info("container runtime found", "socket", socket)
	}
	r.socket = socket
}
