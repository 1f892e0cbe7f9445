package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

var (
	errFixedLevel = errors.New("the agent's log level cannot be changed")
	errOldTunnel  = errors.New("no tunnel that is connected can change its log level: it is of an older version than the agent")
)

// LogLevels implements admin.LogNode.
func (i inspector) LogLevels(ctx context.Context, change admin.LogChange) (*admin.LogLevels, error) {
	own, err := admin.ParseLogLevel(change.Agent)
	if err != nil {
		return nil, err
	}
	tunnel, err := admin.ParseLogLevel(change.Tunnel)
	if err != nil {
		return nil, err
	}
	l := &admin.LogLevels{Node: i.agent.Node, Tunnels: []admin.TunnelLevel{}}
	return l, i.inspect(ctx, func(a *Agent) error {
		if ctx.Err() != nil {
			return ctx.Err() // nobody would learn of the change
		}
		if tunnel != nil {
			if err := a.setTunnelLevel(*tunnel); err != nil {
				return err
			}
		}
		if own != nil {
			if err := a.setLevel(*own); err != nil {
				return err
			}
		}
		if a.LogLevel != nil {
			l.Agent = levelName(a.LogLevel.Level())
		}
		oldestFirst := func(x, y *session) int { return x.since.Compare(y.since) }
		for _, s := range slices.SortedFunc(maps.Keys(a.sessions), oldestFirst) {
			level := admin.VersionUnknown
			if s.build != "" {
				level = levelName(s.logLevel)
			}
			l.Tunnels = append(l.Tunnels, admin.TunnelLevel{Version: s.version(), Level: level})
		}
		return nil
	})
}

func levelName(l slog.Level) string { return strings.ToLower(l.String()) }

func (a *Agent) setLevel(level slog.Level) error {
	if a.LogLevel == nil {
		return errFixedLevel
	}
	before := a.LogLevel.Level()
	a.LogLevel.Set(min(before, level)) // else the line itself may be one too many
	a.log.Info("log level changed", "from", before, "to", level)
	a.LogLevel.Set(level)
	return nil
}

// setTunnelLevel tells all tunnels. It fails when there is none that understands it.
func (a *Agent) setTunnelLevel(level slog.Level) error {
	if len(a.sessions) == 0 {
		return errNoTunnel
	}
	err := errOldTunnel
	for s := range a.sessions {
		if s.build == "" {
			continue
		}
		s.logLevel, err = level, nil
		s.send(outgoing{message: &control.FromAgent{Message: &control.FromAgent_LogLevel{LogLevel: &control.LogLevel{Level: int32(level)}}}})
	}
	return err
}
