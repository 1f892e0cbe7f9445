package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

const (
	pathLogLevel    = "/v1/loglevel"
	logLevelTimeout = 10 * time.Second
)

// LogNode tells from which level on a node's processes log, and changes it, until they start again.
type LogNode interface {
	// LogLevels returns the levels in force. Those that change names are changed first.
	LogLevels(ctx context.Context, change LogChange) (*LogLevels, error)
}

// LogChange names the levels to be. What is empty stays.
type LogChange struct {
	Agent  string `json:"agent,omitempty"`
	Tunnel string `json:"tunnel,omitempty"` // of all that are connected
}

// LogLevels are the levels in force.
type LogLevels struct {
	Answer
	Node    string        `json:"node"`
	Agent   string        `json:"agent"`
	Tunnels []TunnelLevel `json:"tunnels"`
}

// TunnelLevel is the level of one connected tunnel.
type TunnelLevel struct {
	Version string `json:"version"`
	Level   string `json:"level"` // VersionUnknown: it is too old to tell, or to change it
}

// LogLevelNames are the levels that there are names for, the least severe first.
func LogLevelNames() []string { return []string{"debug", "info", "warn", "error"} }

// ParseLogLevel reads one of LogLevelNames. Nothing is no level, and no error.
func ParseLogLevel(name string) (level *slog.Level, err error) {
	if name == "" {
		return nil, nil
	}
	for i, known := range LogLevelNames() {
		if strings.EqualFold(name, known) {
			named := slog.LevelDebug + slog.Level(i)*(slog.LevelInfo-slog.LevelDebug)
			return &named, nil
		}
	}
	return nil, fmt.Errorf("level %.20q: want %s", name, strings.Join(LogLevelNames(), ", "))
}

// registerLogLevel adds the call.
func registerLogLevel(mux *http.ServeMux, s *server, node LogNode) {
	mux.Handle("POST "+pathLogLevel, handle(s, func(ctx context.Context, change LogChange) (*LogLevels, error) {
		for _, name := range []string{change.Agent, change.Tunnel} {
			if _, err := ParseLogLevel(name); err != nil {
				return nil, errBadRequest(err.Error())
			}
		}
		l, err := node.LogLevels(ctx, change)
		if err == nil {
			l.Answer = s.answer()
		}
		return l, err
	}))
}

// LogLevels implements LogNode.
func (c *Client) LogLevels(ctx context.Context, change LogChange) (*LogLevels, error) {
	ctx, cancel := context.WithTimeout(ctx, logLevelTimeout)
	defer cancel()
	out := &LogLevels{}
	return out, c.call(ctx, http.MethodPost, pathLogLevel, change, out)
}
