// Package istiod holds tests of Culvert's agent against a real istiod, and of Istio's own client against `culvert ca`,
// both with a real API server. README.md says how to run them and what istiod needs.
package istiod
