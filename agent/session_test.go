package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

func TestRoutesOfAWorkloadThatIsGoneMakeRoomForOthers(t *testing.T) {
	address := netip.MustParseAddrPort(serverAddress + ":80")
	s := &session{routes: map[destination]*control.Route{{1, address}: {}, {2, address}: {}}}
	s.forgetRoutes(1)
	if _, kept := s.routes[destination{2, address}]; len(s.routes) != 1 || !kept {
		t.Fatalf("%d routes are left, want that of the other workload alone", len(s.routes))
	}
}

func TestSocketsThatNobodyTakesAreBounded(t *testing.T) {
	s := &session{queue: make(chan outgoing, 1)}
	s.waiting.Store(maxWaiting)
	(&Agent{}).sockets(s, &control.NeedSockets{Workload: 1, Count: 200})
	o := <-s.queue
	if got := o.message.GetSockets().GetError(); got != errSocketsWaiting.Error() || len(o.files) != 0 {
		t.Fatalf("%d sockets and error %q, want none and %q", len(o.files), got, errSocketsWaiting)
	}
}

func TestProblemIsLoggedAgainWhenItComesBack(t *testing.T) {
	var logged strings.Builder
	a := &Agent{log: slog.New(slog.NewTextHandler(&logged, nil))}
	broken := []source.Problem{{Object: "Pod n/p", Err: errors.New("no")}, {Object: "Pod n/p", Err: errors.New("neither")}}
	for _, problems := range [][]source.Problem{broken, broken, nil, broken} {
		a.reportProblems(problems)
	}
	if got := strings.Count(logged.String(), "Pod n/p"); got != 4 {
		t.Errorf("logged %d times, want twice for each appearance:\n%s", got, logged.String())
	}
}

// What outsiders cause never fills the queue whose overflow disconnects a tunnel.
func TestRefusalsLeaveRoomInTheQueue(t *testing.T) {
	s := &session{queue: make(chan outgoing, 16)}
	released := 0
	for range 100 {
		s.offer(outgoing{release: func() { released++ }})
	}
	if len(s.queue) != 4 || released != 96 {
		t.Errorf("%d wait, %d were given back", len(s.queue), released)
	}
}
