package hbone

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// pipeRecords is a record layer without TLS, for fuzzing: the peer's bytes come from in, at most
// step at once; ours are dropped.
type pipeRecords struct {
	in   *bytes.Reader
	step int
}

func (p *pipeRecords) wait() error { return nil }
func (p *pipeRecords) readBatch(b []byte) (int, error) {
	return p.in.Read(b[:min(len(b), p.step)])
}
func (p *pipeRecords) writeBatch([][]byte, bool) (bool, error) { return true, nil }
func (p *pipeRecords) stray() bool                             { return false }
func (p *pipeRecords) closeWrite() error                       { return nil }

func seeds() [][]byte {
	session := func(f func(fr *http2.Framer)) []byte {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		f(fr)
		return b.Bytes()
	}
	open := func(fr *http2.Framer, id uint32) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: connectBlock(), EndHeaders: true})
	}
	return [][]byte{
		session(func(fr *http2.Framer) {
			open(fr, 1)
			fr.WriteDataPadded(1, false, []byte("hello"), make([]byte, 9))
			fr.WriteData(1, true, []byte("world"))
			open(fr, 3)
			fr.WriteRSTStream(3, http2.ErrCodeCancel)
			fr.WriteData(3, false, []byte("late"))
		}),
		session(func(fr *http2.Framer) {
			b := connectBlock()
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2], PadLength: 3, Priority: http2.PriorityParam{Weight: 1}})
			fr.WriteContinuation(1, true, b[2:])
			fr.WriteWindowUpdate(1, 100)
			fr.WriteWindowUpdate(0, 100)
			fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			fr.WriteSettingsAck()
			fr.WritePing(false, [8]byte{})
			fr.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
		}),
		session(func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":method", "GET"), EndHeaders: true, EndStream: true})
			open(fr, 1)
			fr.WriteRawFrame(99, 0xff, 7, []byte("?"))
			fr.WriteData(1, true, nil)
		}),
		session(func(fr *http2.Framer) { fr.WriteContinuation(1, true, nil) }),
		{},
		bytes.Repeat([]byte{0xff}, 40),
	}
}

// FuzzServerFrames feeds a server whatever may follow the client's preface. It must neither panic nor
// hang, all its goroutines must end, and all its memory come back.
func FuzzServerFrames(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(1))
		f.Add(s, uint16(1000))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		ours, theirs := tcpPair(t)
		defer theirs.Close()
		budget := NewBudget(1 << 20)
		c := newConn(context.Background(), ours, Config{Budget: budget}.withDefaults(false), false)
		c.records = &pipeRecords{in: bytes.NewReader(append([]byte(clientPreface), in...)), step: int(step) + 1}
		c.handler = func(_ context.Context, r *Request) {
			if len(r.Authority)%2 == 0 {
				r.Refuse(503)
				return
			}
			app, relayed := tcpPair(t)
			go echo(app)
			r.Accept(relayed)
		}
		c.start()
		select {
		case <-c.Done():
		case <-time.After(patience):
			t.Fatal("hangs")
		}
		closed := make(chan error)
		go func() { closed <- c.Close() }()
		await(t, closed, "Close")
		if n := budget.Used(); n != 0 {
			t.Errorf("%d bytes of the budget are lost", n)
		}
		if len(c.streams) != 0 || c.active != 0 {
			t.Errorf("%d streams left, %d active", len(c.streams), c.active)
		}
	})
}

func echo(app *net.TCPConn) {
	io.Copy(app, app)
	app.Close()
}
