package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// ErrAway says that no answer could be had: nobody listens, or whoever listened went away. Asking again may
// help.
var ErrAway = errors.New("agent is away")

// defaultTimeout is for contexts without a deadline.
const defaultTimeout = 30 * time.Second

// Call asks the agent that listens on path once, and waits for the answer until ctx ends. The version and the
// timeout of the request are filled in. netns stays the caller's; it may be nil where the command needs none.
// An answer that carries an Error is an answer.
func Call(ctx context.Context, path string, r *Request, netns *os.File) (*Response, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultTimeout)
	}
	whole := *r
	whole.Version, whole.Timeout = Version, max(time.Until(deadline), 0)
	messages, err := whole.encode()
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, path, deadline)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	answer, err := exchange(conn, messages, netns)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("asking the agent: %w (%w)", ErrAway, ctx.Err())
	}
	return answer, err
}

func dial(ctx context.Context, path string, deadline time.Time) (*net.UnixConn, error) {
	var d net.Dialer
	any, err := d.DialContext(ctx, network, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	conn := any.(*net.UnixConn)
	// Only root can make a socket in the agent's folder, but the answer decides whether a pod starts.
	uid, err := PeerUID(conn)
	if err == nil && uid != 0 {
		err = fmt.Errorf("socket %s belongs to user %d, not to the agent", path, uid)
	}
	if err == nil {
		err = conn.SetDeadline(deadline)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func exchange(conn *net.UnixConn, messages [][]byte, netns *os.File) (*Response, error) {
	for _, m := range messages {
		// A server that refuses may answer and close before it has read all: its answer is still there.
		if err := send(conn, m, netns); err != nil && !isPeerGone(err) {
			return nil, fmt.Errorf("%w: sending: %w", ErrAway, err)
		}
		netns = nil
	}
	data, files, err := receive(conn)
	closeAll(files)
	var refused *Error
	switch {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: it hung up without an answer", ErrAway)
	case errors.As(err, &refused):
		return nil, fmt.Errorf("answer: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%w: receiving: %w", ErrAway, err)
	}
	return decodeResponse(data)
}
