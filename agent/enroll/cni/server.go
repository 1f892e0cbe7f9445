package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConnections bounds the connections that are open at a time; those above wait in the backlog.
	maxConnections = 512
	// maxWorking bounds the requests that the handler works on at a time. Commands other than ADD do not
	// count: a DEL must not wait behind pods that wait for something.
	maxWorking = 64
	// messageTimeout is how long a connection may take to say what it wants, and to take its answer. The
	// plugin sends as soon as it is connected.
	messageTimeout = 2 * time.Second
)

// Handler does what plugins ask for. Its methods are called concurrently. A context ends when the plugin no longer waits,
// when Serve is to end, and at the latest after MaxTimeout; methods return soon after that.
//
// A request may come again: when an answer was lost, when the runtime repeats it, after a restart of either side. Each
// method has to be idempotent.
//
// An *Error that a method returns is handed on; any other error gets the code CodeTryAgain (Add, Delete, GC),
// CodeNotEnforced (Check) or CodeUnavailable (Status). With Retry the plugin asks again while it has time.
// CodeUnavailable with Retry says that the agent is not ready, which is as if it were away: with failOpen, the pod
// starts all the same. So does an error after the context has ended. Whatever else the agent says is about this
// pod, and fails it.
type Handler interface {
	// Add returns when the pod is enforced and its listeners stand, or is not to be enrolled, and says
	// which. netns is closed after the return: who needs it longer duplicates it. Nothing is proved about it.
	Add(ctx context.Context, r *Request, netns *os.File) (Response, error)
	// Check returns an error if the pod ought to be enforced and is not. netns is as in Add.
	Check(ctx context.Context, r *Request, netns *os.File) error
	// Delete forgets the sandbox. That there was none is no error.
	Delete(ctx context.Context, r *Request) error
	// GC forgets all sandboxes but those in r.Valid.
	GC(ctx context.Context, r *Request) error
	// Status returns an error if Add could not succeed now.
	Status(ctx context.Context) error
}

type server struct {
	handler Handler
	log     *slog.Logger
	working chan struct{}
}

// Serve answers plugins until ctx ends, then waits for the requests under way, whose contexts end too, and
// returns nil. The listener stays the caller's to close. An error says that the listener is of no use any more.
func Serve(ctx context.Context, l *Listener, h Handler, log *slog.Logger) error {
	s := &server{handler: h, log: log, working: make(chan struct{}, maxWorking)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := l.unix.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("CNI socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.unix.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, maxConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.unix.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				cancel()
				return fmt.Errorf("CNI socket: %w", err)
			}
			log.Warn("CNI socket does not accept", "error", err)
			sleep(ctx, 50*time.Millisecond) // out of descriptors, most likely
			continue
		}
		all.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			s.serve(ctx, conn)
		})
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve reads one request and answers it.
func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	uid, err := PeerUID(conn)
	if err != nil || uid != 0 {
		s.log.Warn("CNI request of another user than root refused", "uid", uid, "error", err)
		return
	}
	r, netns, err := s.read(ctx, conn)
	if err != nil {
		if !errors.Is(err, io.EOF) && ctx.Err() == nil { // EOF: somebody looked whether we are there
			s.log.Warn("CNI request refused", "error", err)
			s.answer(conn, &Response{Error: asError(err, CodeInvalidRequest)})
		}
		return
	}
	if netns != nil {
		defer netns.Close()
	}
	s.answer(conn, s.work(ctx, conn, r, netns))
}

// read receives the request, all its messages, and its descriptor.
func (s *server) read(ctx context.Context, conn *net.UnixConn) (*Request, *os.File, error) {
	if err := conn.SetReadDeadline(time.Now().Add(messageTimeout)); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	data, files, err := receive(conn)
	if err != nil {
		return nil, nil, err
	}
	r, err := decodeRequest(data)
	if err == nil {
		err = checkFiles(r, files)
	}
	if err == nil {
		err = readMore(conn, r)
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	if len(files) == 0 {
		return r, nil, nil
	}
	return r, files[0], nil
}

func checkFiles(r *Request, files []*os.File) error {
	switch {
	case r.needsNetns() && len(files) != 1:
		return &Error{Code: CodeInvalidRequest, Msg: fmt.Sprintf("%s with %d descriptors, want that of the network namespace", r.Command, len(files))}
	case !r.needsNetns() && len(files) != 0:
		return &Error{Code: CodeInvalidRequest, Msg: fmt.Sprintf("%s with a descriptor", r.Command)}
	}
	return nil
}

// readMore appends the attachments of the messages that follow the first.
func readMore(conn *net.UnixConn, r *Request) error {
	for r.More {
		data, files, err := receive(conn)
		closeAll(files)
		if err != nil {
			return err
		}
		next, err := decodeRequest(data)
		if err != nil {
			return err
		}
		// A part without attachments would let a peer go on for ever.
		if next.Command != r.Command || len(next.Valid) == 0 || len(r.Valid)+len(next.Valid) > maxAttachments {
			return &Error{Code: CodeInvalidRequest, Msg: "messages of a request do not belong together, or are too many"}
		}
		r.Valid = append(r.Valid, next.Valid...)
		r.More = next.More
	}
	return nil
}

// work calls the handler, with a context that ends when the plugin hangs up.
func (s *server) work(ctx context.Context, conn *net.UnixConn, r *Request, netns *os.File) *Response {
	timeout := r.Timeout
	if timeout <= 0 || timeout > MaxTimeout {
		timeout = MaxTimeout
	}
	// Somewhat less than the plugin waits, so that it hears what took so long.
	ctx, cancel := context.WithTimeout(ctx, timeout-min(timeout/10, 500*time.Millisecond))
	defer cancel()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return &Response{Error: asError(err, CodeInternal)}
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		// The plugin has nothing more to say: whatever ends this read says that it no longer waits.
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	defer watch.Wait()
	defer func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }()

	if r.Command == Add {
		select {
		case s.working <- struct{}{}:
			defer func() { <-s.working }()
		case <-ctx.Done():
			return &Response{Error: &Error{Code: CodeUnavailable, Msg: "agent is too busy", Retry: true}}
		}
	}
	began := time.Now()
	response := s.call(ctx, r, netns)
	log := s.log.With("command", r.Command, "pod", r.PodNamespace+"/"+r.PodName, "container", r.ContainerID, "took", time.Since(began))
	switch {
	case response.Error != nil:
		log.Warn("CNI request failed", "error", response.Error, "code", response.Error.Code)
	case r.Command == Add:
		log.Info("CNI request answered", "enrolled", response.Enrolled, "reason", response.Reason)
	default:
		log.Debug("CNI request answered")
	}
	return response
}

func (s *server) call(ctx context.Context, r *Request, netns *os.File) *Response {
	var response Response
	var err error
	code := uint(CodeTryAgain)
	switch r.Command {
	case Add:
		if response, err = s.handler.Add(ctx, r, netns); err == nil && !response.Enrolled && response.Reason == "" {
			response.Reason = "agent gave no reason"
		}
	case Check:
		code = CodeNotEnforced
		err = s.handler.Check(ctx, r, netns)
	case Delete:
		err = s.handler.Delete(ctx, r)
	case GC:
		err = s.handler.GC(ctx, r)
	case Status:
		code = CodeUnavailable
		err = s.handler.Status(ctx)
	}
	if err != nil {
		response = Response{Error: asError(err, code)}
		// Ended from outside, not by what was asked for: another agent, or this one later, may do better.
		if ctx.Err() != nil {
			response.Error.Code, response.Error.Retry = CodeUnavailable, true
		}
	}
	if response.Error != nil && response.Error.Code == 0 {
		response.Error.Code = code // 0 is "unknown" and would tell a runtime nothing
	}
	return &response
}

func asError(err error, code uint) *Error {
	var e *Error
	if errors.As(err, &e) {
		copied := *e
		return &copied
	}
	return &Error{Code: code, Msg: err.Error()}
}

func (s *server) answer(conn *net.UnixConn, response *Response) {
	response.Version = Version
	data, err := encodeResponse(response)
	if err == nil {
		err = conn.SetWriteDeadline(time.Now().Add(messageTimeout))
	}
	if err == nil {
		err = send(conn, data, nil)
	}
	if err != nil && !isPeerGone(err) {
		s.log.Warn("CNI request could not be answered", "error", err)
	}
}

// isPeerGone reports whether the other end has closed.
func isPeerGone(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
