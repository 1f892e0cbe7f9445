package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// answer is what every path of the HTTP server but /healthz says.
type answer struct {
	Pod    string // host name, which is the pod's name
	Client string // address and port that the request came from
	Server string // address and port that it came to
	Host   string // as the client called the server
	Path   string
}

// serve listens on every port it is given until ctx ends.
func serve(ctx context.Context, args []string, _ io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	httpPorts := flags.String("http", "8080", "ports for HTTP, separated by commas")
	tcpPorts := flags.String("tcp", "", "ports that send back what they receive")
	grpcPorts := flags.String("grpc", "", "ports with the gRPC health service")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var servers []*http.Server
	defer func() {
		for _, s := range servers {
			_ = s.Close()
		}
	}()
	failed := make(chan error, 1)
	report := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	start := func(ports string, handler http.Handler, protocols *http.Protocols) error {
		return eachPort(ports, func(l net.Listener) {
			s := &http.Server{Handler: handler, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
			servers = append(servers, s)
			go func() { report(s.Serve(l)) }()
		})
	}
	if err := start(*httpPorts, newHandler(), nil); err != nil {
		return err
	}
	if err := start(*grpcPorts, http.HandlerFunc(health), cleartextHTTP2()); err != nil {
		return err
	}
	echoes, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	err := eachPort(*tcpPorts, func(l net.Listener) {
		group.Go(func() { echo(echoes, l) })
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	}
}

// eachPort listens on each of a comma-separated list of ports, on every address of the pod.
func eachPort(list string, use func(net.Listener)) error {
	for word := range strings.SplitSeq(list, ",") {
		if word == "" {
			continue
		}
		port, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return fmt.Errorf("port %q: %w", word, errUsage)
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		use(l)
	}
	return nil
}

func newHandler() http.Handler {
	pod, err := os.Hostname()
	if err != nil {
		pod = "unknown: " + err.Error()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		server, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer{ // an error means that the client has gone
			Pod: pod, Client: r.RemoteAddr, Server: fmt.Sprint(server), Host: r.Host, Path: r.URL.Path,
		})
	})
	return mux
}

// echo sends back what each connection sends, until ctx ends.
func echo(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: they come back
			continue
		}
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			_, _ = io.Copy(conn, conn)
		})
	}
}
