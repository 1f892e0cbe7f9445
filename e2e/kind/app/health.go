package main

import (
	"net/http"
)

// healthPath is the one method of the gRPC health service that the kubelet calls.
const healthPath = "/grpc.health.v1.Health/Check"

// cleartextHTTP2 is what gRPC speaks without TLS.
func cleartextHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// health answers gRPC calls without a gRPC library: the health check with SERVING, anything else with UNIMPLEMENTED.
func health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	if r.URL.Path != healthPath {
		w.Header().Set("Grpc-Status", "12")
		w.Header().Set("Grpc-Message", "only "+healthPath+" is there")
		return
	}
	w.Header().Set("Trailer", "Grpc-Status")
	// A message is its compression, its length in four bytes, and a HealthCheckResponse: field 1 is 1.
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 0x08, 0x01})
	w.Header().Set("Grpc-Status", "0")
}
