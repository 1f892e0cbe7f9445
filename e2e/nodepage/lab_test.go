package nodepage

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/culvert-mesh/culvert/agent/nodepage"
	"github.com/culvert-mesh/culvert/e2e/lab"
)

// An agent serves the page on its node's loopback, where the browser has to be too.
func TestPageOnANodesLoopback(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces")
	}
	l, err := lab.New(t.Context(), lab.Options{Prefix: fmt.Sprintf("page%d", os.Getpid()), RunDir: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	node, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	err = node.Do(func() error {
		listener, err = net.Listen("tcp", "127.0.0.1:15020")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: nodepage.Handler(&script{page: village()}, slog.New(slog.DiscardHandler))}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	tab := StartBrowser(t, On(node)).Open(t)
	tab.Go("http://127.0.0.1:15020/")
	tab.WaitText("Live")
}
