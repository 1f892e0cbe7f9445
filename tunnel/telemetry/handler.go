package telemetry

import (
	"bufio"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const (
	scrapesAtOnce = 2
	writeBuffer   = 64 << 10
)

// Handler serves what rest gathers, and the traffic after it, in Prometheus' text format. m itself is to be
// registered with rest.
func (m *Metrics) Handler(rest prometheus.Gatherer) http.Handler {
	scraping := make(chan struct{}, scrapesAtOnce)
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case scraping <- struct{}{}:
			defer func() { <-scraping }()
		default:
			http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
			return
		}
		gathered, err := rest.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(format))
		encoder := expfmt.NewEncoder(w, format)
		for _, family := range gathered {
			if encoder.Encode(family) != nil {
				return // the client has gone
			}
		}
		_ = m.Traffic.WriteText(w) // as above
	})
}

// WriteText writes the traffic in Prometheus' text format.
func (t *Traffic) WriteText(w io.Writer) error {
	out := bufio.NewWriterSize(w, writeBuffer)
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
