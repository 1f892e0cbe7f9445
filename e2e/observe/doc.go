// Package observe tests what people see of the program with the real Prometheus of Debian's package prometheus.
package observe
