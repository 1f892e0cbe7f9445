package server

import (
	"fmt"
	"net/http"
	"strings"
)

// condition is something that must hold before the CA can serve; it says what is missing, or "".
type condition func() (missing string)

// health answers /healthz as long as the process lives, and /readyz once all conditions hold.
func health(ready []condition) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var missing []string
		for _, c := range ready {
			if s := c(); s != "" {
				missing = append(missing, s)
			}
		}
		if len(missing) > 0 {
			http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
