package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestLoggerFlags(t *testing.T) {
	tests := map[string]struct {
		flags *logging
		want  string // in the line, or in the error
		fails bool
	}{
		"json":           {flags: &logging{format: "json", level: "info"}, want: `"msg":"hello"`},
		"text":           {flags: &logging{format: "text", level: "warn"}, want: "msg=hello"},
		"unknown format": {flags: &logging{format: "xml", level: "info"}, want: "--log-format", fails: true},
		"unknown level":  {flags: &logging{format: "text", level: "loud"}, want: "--log-level", fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			log, err := test.flags.logger(&out)
			if (err != nil) != test.fails {
				t.Fatalf("error %v, want one: %v", err, test.fails)
			}
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				log.Error("hello")
				got = out.String()
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
}
