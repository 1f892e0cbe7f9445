package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

// logging holds the flags that agent and tunnel share.
type logging struct{ format, level string }

func (l *logging) register(c *cobra.Command) {
	c.Flags().StringVar(&l.format, "log-format", "text", "log lines as text or json")
	c.Flags().StringVar(&l.level, "log-level", "info", "least severe lines to log: debug, info, warn or error")
}

// logger writes to w. A write that fails (a full disk) loses the line and nothing else.
func (l *logging) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", l.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: want text or json", l.format)
	}
}
