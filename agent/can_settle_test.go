package agent

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

// TestSettleBelievesTheTunnelAndNotSilence: a connection that the tunnel has taken stands, whatever becomes of it.
func TestSettleBelievesTheTunnelAndNotSilence(t *testing.T) {
	const local = "10.1.0.1:40000"
	for name, tt := range map[string]struct {
		far   func(fd int) // what the other end does
		tells observe.Carried
		want  admin.TrialOutcome
	}{
		"the tunnel tells":      {func(int) {}, observe.MTLS, admin.TrialConnected},
		"the far side closes":   {func(fd int) { unix.Shutdown(fd, unix.SHUT_RDWR) }, "", admin.TrialClosed},
		"the tunnel tells late": {func(fd int) { unix.Write(fd, []byte("hello")) }, observe.SameNode, admin.TrialConnected},
	} {
		t.Run(name, func(t *testing.T) {
			o := observed(t, nil, nil)
			o.agent.observer = o
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[0])
			defer unix.Close(fds[1])
			tt.far(fds[1])
			trial := &admin.Trial{Outcome: admin.TrialConnected, Local: local}
			_, after, _ := o.memory.Events(0)
			if tt.tells != "" {
				time.AfterFunc(200*time.Millisecond, func() {
					at := netip.MustParseAddrPort(local)
					o.memory.Flow(observe.Event{Number: 9, Carried: tt.tells, Open: true, Source: observe.End{Address: at.Addr(), Port: at.Port()}}, nil, observe.Peer{})
				})
			}
			inspector{agent: o.agent, observer: o}.settle(t.Context(), fds[0], trial, after)
			if trial.Outcome != tt.want || trial.Carried != string(tt.tells) {
				t.Errorf("%+v, want %s carried %q", trial, tt.want, tt.tells)
			}
		})
	}
}
