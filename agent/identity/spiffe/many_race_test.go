//go:build race

package spiffe

// many is what the race detector gets done in seconds.
const many = 1_000
