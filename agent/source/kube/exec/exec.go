// Package exec runs Culvert's own commands in the agents of other nodes, through the API server as kubectl exec does.
// Whoever asks needs to get and list pods, and to create pods/exec in the agents' namespace.
package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	core "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	// container is the agent's, and command the binary in it.
	container = "agent"
	command   = "culvert"

	// runTimeout bounds a command. The slowest is a handshake, which has 30 s.
	runTimeout = time.Minute
	// maxOutput bounds what a command may answer: 10,000 identities are 40 MB or so.
	maxOutput = 256 << 20
	maxErrors = 16 << 10
)

var errTooLarge = fmt.Errorf("answer is larger than %d MB", maxOutput>>20)

// ExitError is the end of a command with another code than 0.
type ExitError struct {
	Code   int
	Stderr string
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Stderr
}

// Run runs culvert with these arguments in the agent of that node and returns what it wrote. With an *ExitError that may
// be an answer, too.
func (c *Cluster) Run(ctx context.Context, node string, args ...string) ([]byte, error) {
	pod, err := c.agentOn(ctx, node)
	if err != nil {
		return nil, err
	}
	var out []byte
	out, err = c.run(ctx, pod, append([]string{command}, args...))
	if err != nil {
		err = fmt.Errorf("agent of node %s (pod %s/%s): %w", node, c.namespace, pod, err)
	}
	return out, err
}

func (c *Cluster) run(ctx context.Context, pod string, args []string) ([]byte, error) {
	executor, err := c.executor(pod, args)
	if err != nil {
		return nil, err
	}
	bounded, stop := context.WithTimeoutCause(ctx, runTimeout, fmt.Errorf("no answer within %s", runTimeout))
	defer stop()
	bounded, cancel := context.WithCancelCause(bounded)
	defer cancel(nil)
	stdout := &limited{most: maxOutput, full: func() { cancel(errTooLarge) }}
	stderr := &limited{most: maxErrors, full: func() {}}
	// What the library thinks of streams that are cut off is no news to whoever cut them off.
	quiet := klog.NewContext(bounded, logr.Discard())
	err = executor.StreamWithContext(quiet, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
	var exit clientexec.CodeExitError
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case bounded.Err() != nil:
		return nil, context.Cause(bounded)
	case errors.As(err, &exit):
		return stdout.bytes(), &ExitError{Code: exit.Code, Stderr: string(bytes.TrimSpace(stderr.bytes()))}
	case err != nil:
		return nil, fmt.Errorf("exec: %w", err)
	}
	return stdout.bytes(), nil
}

// executor speaks WebSocket, or SPDY where the API server or something before it does not.
func (c *Cluster) executor(pod string, args []string) (remotecommand.Executor, error) {
	url := c.core.Post().Resource("pods").Namespace(c.namespace).Name(pod).SubResource("exec").
		VersionedParams(&core.PodExecOptions{Container: container, Command: args, Stdout: true, Stderr: true}, c.params).URL()
	webSocket, err := remotecommand.NewWebSocketExecutor(c.config, http.MethodGet, url.String())
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, http.MethodPost, url)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// limited keeps the beginning of what is written. The stream's goroutines may write after it has been given up.
type limited struct {
	most int
	full func() // called when more comes

	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p[:min(len(p), l.most-l.buf.Len())])
	if l.buf.Len() == l.most {
		l.full()
	}
	return len(p), nil
}

func (l *limited) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}

var _ io.Writer = (*limited)(nil)
