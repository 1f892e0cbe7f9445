package telemetry

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const (
	// rendersAtOnce bounds the processors that scrapes take.
	rendersAtOnce = 2
	// chunk is what is rendered for a reader before it has to take it: all at once would be 100 MB of text.
	chunk = 16 << 10
	// fresh is for how long what was gathered is told to whoever asks.
	fresh = time.Second
	// compressorsAtMost bounds their memory, of half a megabyte each. Whoever comes when all are in use gets plain text.
	compressorsAtMost = 2
	// gatherTimeout is how long scrapes wait for what is gathered: less than a server gives them to be answered.
	gatherTimeout = 5 * time.Second
)

// errHangs is an answer that may be there in a while.
var errHangs = errors.New("what is to be told is still being gathered")

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

	mu      sync.Mutex
	current *gathering // nil: none yet
}

// gathering is one look at the rest, which all who ask meanwhile, and in the second after, share.
type gathering struct {
	began, ended time.Time
	done         chan struct{}
	text         []byte // never altered
	err          error
}

// stale reports whether another look is due. One that hangs keeps its place: there is never more than one.
func (g *gathering) stale() bool {
	select {
	case <-g.done:
		return g.err != nil || time.Since(g.ended) >= fresh
	default:
		return false
	}
}

func newScrapes(rest prometheus.Gatherer, traffic *Traffic) *scrapes {
	s := &scrapes{rest: rest, traffic: traffic, turns: make(chan struct{}, rendersAtOnce), compressors: make(chan *gzip.Writer, compressorsAtMost)}
	for range compressorsAtMost {
		s.compressors <- nil
	}
	return s
}

// ServeHTTP implements http.Handler.
func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := s.gathered(r.Context())
	if errors.Is(err, errHangs) {
		w.Header().Set("Retry-After", strconv.Itoa(int(gatherTimeout/time.Second)))
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reader := &reader{ctx: r.Context(), to: w, turns: s.turns}
	defer reader.leaveTurn()
	if reader.takeTurn() != nil {
		panic(http.ErrAbortHandler) // as below
	}
	w.Header().Set("Content-Type", string(textFormat()))
	w.Header().Set("Vary", "Accept-Encoding")
	out := bufio.NewWriterSize(reader, chunk)
	if compressor := s.compressor(r, out); compressor != nil {
		w.Header().Set("Content-Encoding", "gzip")
		err = errors.Join(s.write(compressor, text), compressor.Close())
		s.compressors <- compressor
	} else {
		err = s.write(out, text)
	}
	if errors.Join(err, out.Flush()) != nil {
		panic(http.ErrAbortHandler) // what was cut off must not look whole
	}
}

func textFormat() expfmt.Format { return expfmt.NewFormat(expfmt.TypeTextPlain) }

// gathered returns what rest had within the last second.
func (s *scrapes) gathered(ctx context.Context) ([]byte, error) {
	g := s.gathering()
	late := time.NewTimer(gatherTimeout - time.Since(g.began))
	defer late.Stop()
	select {
	case <-g.done:
		return g.text, g.err
	default:
	}
	select {
	case <-g.done:
		return g.text, g.err
	case <-late.C:
		return nil, errHangs
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// gathering is the one that is under way, or was a moment ago, or a new one. It ends with what it looks at, which nobody
// can interrupt.
func (s *scrapes) gathering() *gathering {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.current.stale() {
		g := &gathering{began: time.Now(), done: make(chan struct{})}
		s.current = g
		go func() {
			defer close(g.done)
			g.text, g.err = textOf(s.rest)
			g.ended = time.Now()
		}()
	}
	return s.current
}

func textOf(rest prometheus.Gatherer) ([]byte, error) {
	families, err := rest.Gather()
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
	return text.Bytes(), nil
}

// write fails when the client has gone.
func (s *scrapes) write(out io.Writer, text []byte) error {
	if _, err := out.Write(text); err != nil {
		return err
	}
	return s.traffic.WriteText(out)
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
