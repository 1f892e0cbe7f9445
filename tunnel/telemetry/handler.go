package telemetry

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const (
	// rendersAtOnce bounds the processors that scrapes take.
	rendersAtOnce = 2
	// chunk is what is rendered for a reader before it has to take it: all at once would be 50 MB of text.
	chunk = 16 << 10
	// fresh is for how long what was gathered is told to whoever asks.
	fresh = time.Second
	// compressorsAtMost bounds their memory, of half a megabyte each. Whoever comes when all are in use gets plain text.
	compressorsAtMost = 2
)

// Handler serves what rest gathers, and the traffic after it, in Prometheus' text format. m itself is to be
// registered with rest.
func (m *Metrics) Handler(rest prometheus.Gatherer) http.Handler { return newScrapes(rest, &m.Traffic) }

// Handler serves what a registry gathers in Prometheus' text format.
func Handler(registry prometheus.Gatherer) http.Handler { return newScrapes(registry, new(Traffic)) }

// scrapes answers any number of readers, each at its own pace. A reader holds nothing that another one needs while it
// is written to: how many there may be, and for how long, is up to the server.
type scrapes struct {
	rest        prometheus.Gatherer
	traffic     *Traffic
	turns       chan struct{}
	compressors chan *gzip.Writer // nil: not made yet

	gathering chan struct{} // held while the rest is used
	text      []byte        // of rest; never altered, since all who asked in that second read it
	taken     time.Time
}

func newScrapes(rest prometheus.Gatherer, traffic *Traffic) *scrapes {
	s := &scrapes{rest: rest, traffic: traffic, turns: make(chan struct{}, rendersAtOnce), compressors: make(chan *gzip.Writer, compressorsAtMost), gathering: make(chan struct{}, 1)}
	for range compressorsAtMost {
		s.compressors <- nil
	}
	return s
}

// ServeHTTP implements http.Handler.
func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := s.gathered(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reader := &reader{ctx: r.Context(), to: w, turns: s.turns}
	if reader.takeTurn() != nil {
		return // the client has gone
	}
	defer reader.leaveTurn()
	w.Header().Set("Content-Type", string(textFormat()))
	w.Header().Set("Vary", "Accept-Encoding")
	out := bufio.NewWriterSize(reader, chunk)
	if compressor := s.compressor(r, out); compressor != nil {
		w.Header().Set("Content-Encoding", "gzip")
		s.write(compressor, text)
		_ = compressor.Close() // as in write
		s.compressors <- compressor
	} else {
		s.write(out, text)
	}
	_ = out.Flush() // as in write
}

func textFormat() expfmt.Format { return expfmt.NewFormat(expfmt.TypeTextPlain) }

// gathered returns what rest had within the last second. One asks it at a time.
func (s *scrapes) gathered(ctx context.Context) ([]byte, error) {
	select {
	case s.gathering <- struct{}{}:
		defer func() { <-s.gathering }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.text != nil && time.Since(s.taken) < fresh {
		return s.text, nil
	}
	families, err := s.rest.Gather()
	if err != nil {
		return nil, err
	}
	text := bytes.NewBuffer([]byte{})
	encoder := expfmt.NewEncoder(text, textFormat())
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return nil, err
		}
	}
	s.text, s.taken = text.Bytes(), time.Now()
	return s.text, nil
}

// write stops when the client has gone, which is nobody's error.
func (s *scrapes) write(out io.Writer, text []byte) {
	if _, err := out.Write(text); err == nil {
		_ = s.traffic.WriteText(out)
	}
}

// compressor returns one of the few, or nil: then the answer is not compressed.
func (s *scrapes) compressor(r *http.Request, out io.Writer) *gzip.Writer {
	accepted := strings.Split(r.Header.Get("Accept-Encoding"), ",")
	if !slices.ContainsFunc(accepted, func(name string) bool { return strings.TrimSpace(name) == "gzip" }) {
		return nil
	}
	select {
	case c := <-s.compressors:
		if c == nil {
			c, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a valid one
		}
		c.Reset(out)
		return c
	default:
		return nil
	}
}

// reader is a client. Its turn ends while it is written to.
type reader struct {
	ctx    context.Context
	to     io.Writer
	turns  chan struct{}
	inTurn bool
}

func (r *reader) takeTurn() error {
	select {
	case r.turns <- struct{}{}:
		r.inTurn = true
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

func (r *reader) leaveTurn() {
	if r.inTurn {
		<-r.turns
		r.inTurn = false
	}
}

// Write implements io.Writer.
func (r *reader) Write(p []byte) (int, error) {
	r.leaveTurn()
	n, err := r.to.Write(p)
	if err == nil {
		err = r.takeTurn()
	}
	return n, err
}

// WriteText writes the traffic in Prometheus' text format.
func (t *Traffic) WriteText(w io.Writer) error {
	out := bufio.NewWriterSize(w, chunk)
	all := t.all()
	var line []byte
	for _, f := range families() {
		line = append(line[:0], "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" counter\n"...)
		if _, err := out.Write(line); err != nil {
			return err
		}
		for _, s := range all {
			if f.failures != (s.key.flags != FlagsNone) {
				continue
			}
			line = s.appendLine(line[:0], f.name, f.of(s).Load())
			if _, err := out.Write(line); err != nil {
				return err
			}
		}
	}
	return out.Flush()
}
