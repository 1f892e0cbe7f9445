package hbone

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestDecline: GOAWAY comes before the stream's end, so that the client takes another connection for its next attempt;
// other streams go on.
func TestDecline(t *testing.T) {
	r := newRawClient(t, Config{}, func(_ context.Context, r *Request) { r.Decline() })
	r.connect(1)
	if f := next[*http2.GoAwayFrame](r, nil); f.LastStreamID != maxWindow || f.ErrCode != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v of %d", f.ErrCode, f.LastStreamID)
	}
	r.wantReset(1, CodeRefusedStream)

	decline := make(chan struct{}, 1)
	var tn *tunnel
	tn = newTunnel(t, Config{}, func(_ context.Context, r *Request) {
		select {
		case <-decline:
			if err := r.Decline(); err != nil || r.Decline() != errAnswered {
				t.Errorf("%v, want one answer", err)
			}
		default:
			app, ours := tcpPair(t)
			go func() { app.Write([]byte("still here")); app.Close() }()
			st, err := r.Accept(ours)
			tn.results <- result{st, err}
		}
	})
	open, err := tn.client.Connect(context.Background(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	decline <- struct{}{}
	refused := (*ResetError)(nil)
	if _, err := tn.client.Connect(context.Background(), Request{Authority: "10.0.0.1:80"}); !errors.As(err, &refused) || !refused.Remote || refused.Code != CodeRefusedStream {
		t.Errorf("got %v", err)
	}
	if tn.client.Usable() {
		t.Error("the client would open another stream")
	}
	app, ours := tcpPair(t)
	go open.Relay(ours)
	app.SetDeadline(time.Now().Add(patience))
	got := make([]byte, 10)
	if n, err := app.Read(got); err != nil || string(got[:n]) != "still here" {
		t.Errorf("%q, %v", got[:n], err)
	}
	app.Close()
	await(t, tn.client.Done(), "end of the connection with its last stream")
}
