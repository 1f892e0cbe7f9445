package hbone

import (
	"cmp"
	"log/slog"
	"sync/atomic"
	"time"
)

// Config holds the limits of a connection. The zero value is ready to use: each field's zero means
// the default named beside it.
type Config struct {
	// HandshakeTimeout bounds the TLS handshake (10 s).
	HandshakeTimeout time.Duration
	// PrefaceTimeout bounds the wait for the peer's preface and first SETTINGS (10 s).
	PrefaceTimeout time.Duration
	// HeaderTimeout bounds the time a header block takes from its first to its last byte (10 s).
	HeaderTimeout time.Duration
	// PingInterval is the time between keepalive PINGs (10 s).
	PingInterval time.Duration
	// PingTimeout is how long a peer may be silent after a PING (20 s).
	PingTimeout time.Duration

	// MaxStreams is the number of streams a peer may have open (200), and the cap on what we open
	// towards a peer that allows more.
	MaxStreams int
	// MaxFrame is the largest frame a peer may send (1 MiB).
	MaxFrame int
	// MaxHeaderBytes bounds a header block and its decoded list (64 KiB serving, 16 KiB as a client).
	MaxHeaderBytes int
	// StreamWindow is what a stream may have in flight towards us at first (256 KiB).
	StreamWindow int
	// MaxStreamWindow is what a stream's window grows to while its application keeps up (4 MiB).
	MaxStreamWindow int
	// ConnWindow is what all streams together may have in flight (16 MiB). It is given back on
	// receipt, so that it bounds the reader's lag and never lets one stream stop another.
	ConnWindow int
	// SendQueue is how much may wait for the wire before applications are read no further (256 KiB).
	SendQueue int

	// MaxResets, MaxSettings and MaxPings bound how often per second a peer may reset streams (500),
	// change settings (20) and ping (50). A peer beyond them is told ENHANCE_YOUR_CALM.
	MaxResets, MaxSettings, MaxPings int

	// Budget bounds the bytes that wait for applications. Share one between all connections of a
	// process; nil gives the connection one of its own, of DefaultBudget bytes.
	Budget *Budget
	// Stalls counts how often a stream had to wait because its peer's window was used up; it may be nil.
	Stalls *atomic.Uint64
	// Logger receives what is worth knowing about the connection; nil discards it.
	Logger *slog.Logger
}

const (
	maxWindow    = 1<<31 - 1
	minMaxFrame  = 16 << 10
	maxMaxFrame  = 1<<24 - 1
	assumedLimit = 100 // a peer's stream limit until its SETTINGS arrive
)

func (c Config) withDefaults(client bool) Config {
	headers := 64 << 10
	if client {
		headers = 16 << 10
	}
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 10*time.Second)
	c.PrefaceTimeout = cmp.Or(c.PrefaceTimeout, 10*time.Second)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, 10*time.Second)
	c.PingInterval = cmp.Or(c.PingInterval, 10*time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 20*time.Second)
	c.MaxStreams = cmp.Or(c.MaxStreams, 200)
	c.MaxFrame = min(max(cmp.Or(c.MaxFrame, 1<<20), minMaxFrame), maxMaxFrame)
	c.MaxHeaderBytes = cmp.Or(c.MaxHeaderBytes, headers)
	c.StreamWindow = min(max(cmp.Or(c.StreamWindow, 256<<10), defaultWindow), maxWindow) // less needs the peer's ACK first
	c.MaxStreamWindow = min(max(cmp.Or(c.MaxStreamWindow, 4<<20), c.StreamWindow), maxWindow)
	c.ConnWindow = min(max(cmp.Or(c.ConnWindow, 16<<20), defaultWindow), maxWindow)
	c.SendQueue = cmp.Or(c.SendQueue, 256<<10)
	c.MaxResets = cmp.Or(c.MaxResets, 500)
	c.MaxSettings = cmp.Or(c.MaxSettings, 20)
	c.MaxPings = cmp.Or(c.MaxPings, 50)
	if c.Budget == nil {
		c.Budget = NewBudget(DefaultBudget)
	}
	if c.Stalls == nil {
		c.Stalls = new(atomic.Uint64)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
