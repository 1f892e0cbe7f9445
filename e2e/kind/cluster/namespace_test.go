package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestInNamespace listens in a namespace and finds the listener there and nowhere else.
func TestInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	path := fmt.Sprintf("/run/netns/culvert-e2e-unit-%d", os.Getpid())
	if err := makeNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := deleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	var listener net.Listener
	err := inNamespace(path, func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dial := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	if err := inNamespace(path, dial); err != nil {
		t.Errorf("inside: %v", err)
	}
	if err := dial(); err == nil {
		t.Error("the listener is reachable from outside")
	}
	if err := deleteNamespace(path); err != nil {
		t.Error(err)
	}
	if err := inNamespace(path, dial); err == nil || !strings.Contains(err.Error(), "is the cluster up?") {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestDialWantsAddress(t *testing.T) {
	_, err := newCluster(t, "", "").DialContext(t.Context(), "tcp", "kubernetes.default:443")
	if err == nil || !strings.Contains(err.Error(), "only IP addresses") {
		t.Errorf("error %v, want that names cannot be dialled", err)
	}
}
