// Package hbone carries TCP connections as CONNECT streams of HTTP/2 over mutual TLS 1.3,
// wire-compatible with Istio's HBONE.
//
// It knows bytes, streams and connections, and nothing of Kubernetes, identities or policy: who
// may connect is decided by the caller's [tls.Config] and [Handler].
//
// It speaks CONNECT and nothing else, which is what makes it cheap: no header maps, no bodies, no
// per-stream goroutine on the receiving side. One connection looks like this:
//
//	app socket --pump(1 goroutine per stream)--> lanes --flush(whoever comes first)--> TLS --> peer
//	peer --> TLS --reader(1 goroutine per connection)--> app socket, at once and without blocking
//	                                             \--> what it does not take: queue --drain--> app socket
//
// Locks: Conn.mu guards streams, send windows and the write lanes; receiver.mu guards one stream's
// receiving side. They are never held together, and no socket is closed or waited for under either.
package hbone
