package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	// tryTimeout is how long a connection may take to be made.
	tryTimeout = 5 * time.Second
	// watchTime is how long it is watched then.
	watchTime = 2 * time.Second
	// pollStep is how soon the end of the question is noticed.
	pollStep = 100 * time.Millisecond
)

// try makes the connection from the client's network namespace, by a socket like any of an application's there.
func (i inspector) try(ctx context.Context, q *question, to netip.AddrPort) error {
	socket, err := i.socketOf(ctx, q, to.Addr().Is6())
	if err != nil {
		return fmt.Errorf("try: %w", err)
	}
	var after uint64
	if o := i.agent.observer; o != nil {
		_, after, _ = o.memory.Events(math.MaxUint64) // what comes from now on
	}
	fd := int(socket.Fd()) // which has it block
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(fmt.Errorf("try: socket: %w", err), socket.Close())
	}
	tunnelled, err := i.tunnelled(ctx, q, to)
	if err != nil {
		return errors.Join(fmt.Errorf("try: %w", err), socket.Close())
	}
	trial := tryConnect(ctx, fd, to)
	if tunnelled && trial.Outcome == admin.TrialConnected {
		i.settle(ctx, fd, trial, after)
	}
	if err := socket.Close(); err != nil { // now, since short connections are told of when they are over
		return fmt.Errorf("try: socket: %w", err)
	}
	if trial.Carried == "" {
		i.look(ctx, q, trial, after)
	}
	q.verdict.Tried = trial
	trial.Difference = compare(q.verdict, trial)
	trial.AsForetold = trial.Difference == ""
	return ctx.Err()
}

// socketOf makes a socket where the client is. It is not exempt from anything: it takes the application's way.
func (i inspector) socketOf(ctx context.Context, q *question, ipv6 bool) (*os.File, error) {
	if q.from == nil || q.from.pod.HostNetwork {
		family := unix.AF_INET
		if ipv6 {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
		return os.NewFile(uintptr(fd), "tcp"), nil
	}
	netns, err := i.netnsOf(ctx, q.from)
	if err != nil {
		return nil, fmt.Errorf("network namespace of pod %s: %w", q.verdict.From, err)
	}
	defer netns.Close()
	files, err := netns.Sockets(ipv6, 1)
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// netnsOf opens a pod's namespace, once more proved to be the pod's.
func (i inspector) netnsOf(ctx context.Context, p *place) (*enroll.Netns, error) {
	if p.enrolled == nil {
		return i.locate(ctx, p.pod)
	}
	var file *os.File
	if err := i.inspect(ctx, func(a *Agent) (err error) {
		w := a.byPod[p.pod.Ref()]
		if w == nil {
			return errors.New("it is not enrolled any more")
		}
		file, err = w.netns.Duplicate()
		return err
	}); err != nil {
		return nil, err
	}
	return enroll.NewNetns(file, p.pod.Addresses)
}

func (i inspector) locate(ctx context.Context, pod *source.Pod) (*enroll.Netns, error) {
	switch {
	case pod.NetnsPath != "":
		return enroll.OpenNetns(pod.NetnsPath, pod.Addresses)
	case i.agent.Locator == nil:
		return nil, errors.New("it is not enrolled, and there is no container runtime to ask")
	}
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	file, _, err := i.agent.Locator.Locate(ctx, pod.SandboxUID())
	if err != nil {
		return nil, err
	}
	return enroll.NewNetns(file, pod.Addresses)
}

// tryConnect connects a socket that does not block, and watches what becomes of the connection.
func tryConnect(ctx context.Context, fd int, to netip.AddrPort) *admin.Trial {
	t := &admin.Trial{Address: to.String()}
	begin := time.Now()
	err := unix.Connect(fd, sockaddr(to))
	if errors.Is(err, unix.EINPROGRESS) {
		if _, err = poll(ctx, fd, unix.POLLOUT, begin.Add(tryTimeout)); err == nil {
			err = socketError(fd)
		}
	}
	t.Connect = time.Since(begin)
	if local, ok := localOf(fd); ok {
		t.Local = local.String()
	}
	if err != nil {
		t.Outcome, t.Error = failedConnect(err), err.Error()
		return t
	}
	begin = time.Now()
	t.Outcome, _, err = watch(ctx, fd, begin.Add(watchTime))
	t.Watched = time.Since(begin)
	if err != nil {
		t.Error = err.Error()
	}
	return t
}

func failedConnect(err error) admin.TrialOutcome {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM):
		return admin.TrialRefused
	case errors.Is(err, unix.ECONNRESET):
		return admin.TrialReset
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return admin.TrialTimeout
	}
	return admin.TrialFailed
}

// watch returns how the connection ended, or TrialConnected when it did not. said is whether the other side said something.
func watch(ctx context.Context, fd int, until time.Time) (outcome admin.TrialOutcome, said bool, err error) {
	_, err = poll(ctx, fd, unix.POLLIN, until)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return admin.TrialConnected, false, nil
	}
	if err != nil {
		return admin.TrialFailed, false, err
	}
	n, err := unix.Read(fd, make([]byte, 1))
	switch {
	case err == nil && n == 0:
		return admin.TrialClosed, false, nil
	case err == nil:
		return admin.TrialConnected, true, nil
	}
	return admin.TrialReset, false, err
}

// poll waits for an event until then.
func poll(ctx context.Context, fd int, events int16, until time.Time) (int16, error) {
	for ctx.Err() == nil {
		left := time.Until(until)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(min(left, pollStep)/time.Millisecond)+1)
		if n > 0 {
			return fds[0].Revents, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll: %w", err)
		}
	}
	return 0, ctx.Err()
}

func socketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	return err
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

func localOf(fd int) (netip.AddrPort, bool) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, false
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), true
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), true
	}
	return netip.AddrPort{}, false
}
