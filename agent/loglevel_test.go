package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

// greet has a tunnel say hello, and drops what it is told.
func greet(t *testing.T, i inspector, hello *control.Hello) *session {
	t.Helper()
	s := &session{queue: make(chan outgoing, 100), since: time.Now()}
	hello.Version = protocolVersion
	onLoop(t, i, func(a *Agent) {
		clear(a.sessions)
		a.welcome(s, hello)
		for len(s.queue) > 0 {
			(<-s.queue).done()
		}
	})
	return s
}

func TestLogLevelsAreShownAndChanged(t *testing.T) {
	a, i := answering(t, cluster())
	var logged bytes.Buffer
	var level slog.LevelVar
	onLoop(t, i, func(a *Agent) {
		a.LogLevel, a.log = &level, slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: &level}))
	})
	s := greet(t, i, &control.Hello{Build: "v1", LogLevel: int32(slog.LevelWarn)})
	got, err := i.LogLevels(t.Context(), admin.LogChange{})
	if err != nil || got.Node != a.Node || got.Agent != "info" || len(got.Tunnels) != 1 || got.Tunnels[0] != (admin.TunnelLevel{Version: "v1", Level: "warn"}) {
		t.Fatalf("%+v, %v", got, err)
	}
	got, err = i.LogLevels(t.Context(), admin.LogChange{Agent: "error"})
	if err != nil || got.Agent != "error" || got.Tunnels[0].Level != "warn" || level.Level() != slog.LevelError || !strings.Contains(logged.String(), "to=ERROR") {
		t.Errorf("%+v, %v; logged %s", got, err, &logged)
	}
	if m := levelTold(s); m != nil {
		t.Error("the tunnel was told of the agent's level")
	}
	got, err = i.LogLevels(t.Context(), admin.LogChange{Tunnel: "DEBUG"})
	if err != nil || got.Agent != "error" || got.Tunnels[0].Level != "debug" {
		t.Errorf("%+v, %v", got, err)
	}
	if m := levelTold(s); m == nil || slog.Level(m.GetLevel()) != slog.LevelDebug {
		t.Errorf("the tunnel was told %v", m)
	}
}

// levelTold is what the tunnel is to be told of its level, among whatever else; nil: nothing.
func levelTold(s *session) (level *control.LogLevel) {
	for len(s.queue) > 0 {
		out := <-s.queue
		if m := out.message.GetLogLevel(); m != nil {
			level = m
		}
		out.done()
	}
	return level
}

func TestLogLevelsThatCannotBeChanged(t *testing.T) {
	_, i := answering(t, cluster())
	s := greet(t, i, &control.Hello{}) // of an old tunnel
	for name, test := range map[string]struct {
		change admin.LogChange
		want   error
	}{
		"agent's without a level": {admin.LogChange{Agent: "debug"}, errFixedLevel},
		"old tunnel's":            {admin.LogChange{Tunnel: "debug"}, errOldTunnel},
	} {
		if _, err := i.LogLevels(t.Context(), test.change); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := i.LogLevels(t.Context(), admin.LogChange{Agent: "loud"}); err == nil {
		t.Error("a level that is none was taken")
	}
	if levelTold(s) != nil {
		t.Error("a tunnel that does not understand it was told")
	}
	if got, err := i.LogLevels(t.Context(), admin.LogChange{}); err != nil || got.Tunnels[0].Level != admin.VersionUnknown {
		t.Errorf("%+v, %v", got, err)
	}
	onLoop(t, i, func(a *Agent) { clear(a.sessions) })
	if _, err := i.LogLevels(t.Context(), admin.LogChange{Tunnel: "debug"}); !errors.Is(err, errNoTunnel) {
		t.Errorf("no tunnel: %v", err)
	}
}

// TestTunnelsVersion: what a tunnel says of itself is shown, made plain, and compared with the agent's "test".
func TestTunnelsVersion(t *testing.T) {
	for name, test := range map[string]struct{ build, want, problem string }{
		"the same":      {"test", "test", ""},
		"another":       {"v0.1", "v0.1", "the tunnel is Culvert v0.1, the agent test"},
		"an old one":    {"", admin.VersionUnknown, "older version than the agent, test"},
		"taken over":    {"\x1b[2J\nv1", "?[2J?v1", "the tunnel is Culvert ?[2J?v1"},
		"and talkative": {strings.Repeat("é", 1000), strings.Repeat("é", maxBuild/2), "the tunnel is"},
	} {
		t.Run(name, func(t *testing.T) {
			a, i := answering(t, cluster())
			a.observer = newObserver(a, "")
			greet(t, i, &control.Hello{Build: test.build}).lost.Store(7)
			var status admin.Status
			onLoop(t, i, func(a *Agent) { status = a.standing().status })
			if got := status.Tunnels[0].Version; got != test.want {
				t.Errorf("status has %q, want %q", got, test.want)
			}
			if skew := skewOf("test", status.Tunnels[0].Version); (skew != "") != (test.problem != "") || !strings.Contains(skew, test.problem) {
				t.Errorf("skew %q, want %q", skew, test.problem)
			}
			page, err := i.Page(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			tunnel := page.Tunnels[0]
			if tunnel.Version != test.want || tunnel.FlowsLost != 7 || (tunnel.Problem != "") != (test.problem != "") {
				t.Errorf("the page has %+v", tunnel)
			}
		})
	}
}

// behind is a source that is.
type behind struct{ source.Source }

func (behind) Stale() []string { return []string{"pods: not up to date for 1m0s"} }

func TestPageSaysThatTheClusterIsNotFollowed(t *testing.T) {
	a, i := answering(t, cluster())
	a.observer = newObserver(a, "")
	page, err := i.Page(t.Context())
	if err != nil || len(page.Agent.Stale) != 0 {
		t.Errorf("a source that does not tell: %q, %v", page.Agent.Stale, err)
	}
	onLoop(t, i, func(a *Agent) { a.Source = behind{} })
	if page, err = i.Page(t.Context()); err != nil || len(page.Agent.Stale) != 1 {
		t.Errorf("a source that is behind: %q, %v", page.Agent.Stale, err)
	}
}
