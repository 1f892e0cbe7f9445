package main

import (
	"bytes"
	"strings"
)

// ruleHead is what the operator wants around the rules.
const ruleHead = `# Made of culvert.yaml by go run ./scripts/dashboards, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: culvert
  namespace: culvert-system
  labels:
    app.kubernetes.io/name: culvert
spec:
`

// prometheusRule makes a file of rules a PrometheusRule. It is the same text, further in, so comments stay.
func prometheusRule(rules []byte) []byte {
	text := string(rules)
	out := bytes.NewBufferString(ruleHead)
	for line := range strings.Lines(text[strings.Index(text, "groups:"):]) {
		if line != "\n" {
			out.WriteString("  ")
		}
		out.WriteString(line)
	}
	return out.Bytes()
}
