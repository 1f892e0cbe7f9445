package tunnel

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// TestAgentChangesTheLogLevel: at once, until the tunnel ends; the next agent hears of it.
func TestAgentChangesTheLogLevel(t *testing.T) {
	n := newNode(t, newAuthority(t, "cluster.local"))
	n.start()
	level := func(l slog.Level) *control.FromAgent {
		return &control.FromAgent{Message: &control.FromAgent_LogLevel{LogLevel: &control.LogLevel{Level: int32(l)}}}
	}
	n.eventually("hello", func() bool { return len(n.heard()) == 1 })
	if hello := n.heard()[0].GetHello(); hello.GetBuild() != "v1.2.3" || slog.Level(hello.GetLogLevel()) != slog.LevelDebug {
		t.Errorf("hello %v", hello)
	}
	n.push(level(slog.LevelError))
	n.await("from=DEBUG to=ERROR")
	n.eventually("the level", func() bool { return n.level.Level() == slog.LevelError })
	n.tunnel.log.Info("not to be seen")
	n.push(level(slog.LevelInfo))
	n.await("from=ERROR to=INFO")
	if strings.Contains(n.logs.String(), "not to be seen") {
		t.Error("a line below the level was written")
	}

	n.agent.stop()
	n.await("agent is gone")
	n.agent = n.startAgent()
	n.eventually("hello to the next agent", func() bool { return len(n.heard()) == 1 })
	if got := slog.Level(n.heard()[0].GetHello().GetLogLevel()); got != slog.LevelInfo {
		t.Errorf("level %s, want what the agent before has set", got)
	}
}
