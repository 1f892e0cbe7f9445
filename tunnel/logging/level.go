package logging

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
)

// LevelHandler tells the level to GET, and has PUT change it to the one in the body: debug, info, warn or error.
func LevelHandler(level *slog.LevelVar) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			var wanted slog.Level
			text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16))
			if err == nil {
				err = wanted.UnmarshalText(bytes.TrimSpace(text))
			}
			if err != nil {
				http.Error(w, "want debug, info, warn or error", http.StatusBadRequest)
				return
			}
			level.Set(wanted)
		}
		fmt.Fprintln(w, level.Level())
	})
}
