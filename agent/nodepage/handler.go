package nodepage

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

const (
	// maxRequests bounds the requests that are worked on and written at one time; any other is turned away at once.
	maxRequests = 32
	retryAfter  = "2" // seconds
	// maxFilter is in bytes.
	maxFilter = 100
)

//go:embed page.html page.css page.js icon.svg
var files embed.FS

// handler serves the page.
type handler struct {
	views  *views
	places chan struct{}
	log    *slog.Logger
	often  rate.Sometimes
}

// Handler serves the page at /, to those who reach it by an address or as localhost.
func Handler(source Source, log *slog.Logger) http.Handler {
	h := &handler{
		views: newViews(source), places: make(chan struct{}, maxRequests), log: log,
		often: rate.Sometimes{Interval: time.Minute},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", h.page)
	mux.HandleFunc("GET /sections", h.sections)
	mux.HandleFunc("GET /page.json", h.json)
	for name, kind := range map[string]string{"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		mux.HandleFunc("GET /"+name, asset(name, kind))
	}
	return guard(mux)
}

// guard tells browsers to trust nothing but this handler, and keeps it from them under any other name: with a name of
// its own that leads here, a foreign site could read the page (DNS rebinding).
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
				"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":       "nosniff",
			"X-Frame-Options":              "DENY",
			"Referrer-Policy":              "no-referrer",
			"Cross-Origin-Opener-Policy":   "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Cache-Control":                "no-store",
		} {
			w.Header().Set(name, value)
		}
		if !ownHost(r) {
			http.Error(w, "this page is served by address, or as localhost", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownHost reports whether the request names this machine's loopback, or the very address it came in on.
func ownHost(r *http.Request) bool {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return false
	}
	if address.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap() == address.Unmap()
}

func asset(name, kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		body, err := files.ReadFile(name)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", kind+"; charset=utf-8")
		w.Write(body)
	}
}

func (h *handler) page(w http.ResponseWriter, r *http.Request) {
	h.answer(w, r, "text/html; charset=utf-8", func(v *view) ([]byte, error) { return v.html, nil })
}

func (h *handler) json(w http.ResponseWriter, r *http.Request) {
	h.answer(w, r, "application/json", func(v *view) ([]byte, error) { return json.Marshal(v.shown.Page) })
}

// sections returns those sections of the page whose tags the browser does not have.
func (h *handler) sections(w http.ResponseWriter, r *http.Request) {
	h.answer(w, r, "application/json", func(v *view) ([]byte, error) {
		var body bytes.Buffer
		encoder := json.NewEncoder(&body)
		encoder.SetEscapeHTML(false) // a third of the size; the type says that it is no page
		err := encoder.Encode(struct {
			Build    string    `json:"build"`
			Sections []section `json:"sections"`
		}{h.views.build, v.without(r.URL.Query())})
		return body.Bytes(), err
	})
}

// answer writes what body makes of how the node stands now.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, kind string, body func(*view) ([]byte, error)) {
	select {
	case h.places <- struct{}{}:
		// Held while the answer is written: it bounds the memory that slow readers keep.
		defer func() { <-h.places }()
	default:
		unavailable(w, "too many look at this page at one time")
		return
	}
	filter := strings.TrimSpace(r.FormValue("filter"))
	if len(filter) > maxFilter || !utf8.ValidString(filter) {
		http.Error(w, fmt.Sprintf("a filter is text of at most %d bytes", maxFilter), http.StatusBadRequest)
		return
	}
	v, err := h.views.get(r.Context(), filter)
	if err == nil {
		var b []byte
		if b, err = body(v); err == nil {
			w.Header().Set("Content-Type", kind)
			w.Write(b)
			return
		}
	}
	if r.Context().Err() == nil {
		h.often.Do(func() { h.log.Warn("node page not served", "error", err) })
	}
	unavailable(w, err.Error())
}

func unavailable(w http.ResponseWriter, why string) {
	w.Header().Set("Retry-After", retryAfter)
	http.Error(w, why, http.StatusServiceUnavailable)
}
