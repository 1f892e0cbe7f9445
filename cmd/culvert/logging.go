package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	logqueue "github.com/culvert-mesh/culvert/tunnel/logging"
)

// logDrain is how long the end waits for lines that are not written yet.
const logDrain = time.Second

// logging holds the flags that all long-running commands share, and the level in force.
type logging struct {
	format, level string
	inForce       slog.LevelVar
}

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
	l.inForce.Set(level)
	options := &slog.HandlerOptions{Level: &l.inForce}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: want text or json", l.format)
	}
}

// queued is logger for what must never wait for whoever reads the log. end is called last.
func (l *logging) queued(r prometheus.Registerer) (log *slog.Logger, end func(), err error) {
	queue := logqueue.NewQueue(os.Stderr)
	if log, err = l.logger(queue); err != nil {
		queue.Close(0)
		return nil, nil, err
	}
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "culvert_log_lines_dropped_total", Help: "Log lines dropped because the log is written too slowly.",
	}, func() float64 { return float64(queue.Dropped()) }))
	return log, func() { queue.Close(logDrain) }, nil
}
