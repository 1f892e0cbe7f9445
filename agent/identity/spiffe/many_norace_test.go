//go:build !race

package spiffe

const many = 10_000
