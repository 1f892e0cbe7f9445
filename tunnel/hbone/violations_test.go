package hbone

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

func TestViolations(t *testing.T) {
	large := strings.Repeat("x", 70<<10)
	tests := []struct {
		name string
		code ErrCode
		send func(r *rawClient)
	}{
		{"even stream", CodeProtocol, func(r *rawClient) { r.connect(2) }},
		{"DATA on idle stream", CodeProtocol, func(r *rawClient) { r.WriteData(9, false, []byte("x")) }},
		{"DATA on stream 0", CodeProtocol, func(r *rawClient) { r.WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) }},
		{"reset of idle stream", CodeProtocol, func(r *rawClient) { r.WriteRSTStream(9, 0) }},
		{"window of idle stream", CodeProtocol, func(r *rawClient) { r.WriteWindowUpdate(9, 1) }},
		{"window overflow", CodeFlowControl, func(r *rawClient) { r.WriteWindowUpdate(0, maxWindow) }},
		{"window by 0", CodeFlowControl, func(r *rawClient) { r.WriteWindowUpdate(0, 0) }},
		{"oversize frame", CodeFrameSize, func(r *rawClient) { r.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20+1)) }},
		{"oversize unknown frame", CodeCalm, func(r *rawClient) { r.WriteRawFrame(99, 0, 0, make([]byte, 20<<10)) }},
		{"SETTINGS of 5 bytes", CodeFrameSize, func(r *rawClient) { r.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }},
		{"SETTINGS on a stream", CodeProtocol, func(r *rawClient) { r.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }},
		{"small max frame", CodeProtocol, func(r *rawClient) { r.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100}) }},
		{"huge initial window", CodeFlowControl, func(r *rawClient) {
			r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		{"push", CodeProtocol, func(r *rawClient) { r.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 4)) }},
		{"PING of 7 bytes", CodeFrameSize, func(r *rawClient) { r.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }},
		{"CONTINUATION alone", CodeProtocol, func(r *rawClient) { r.WriteContinuation(1, true, nil) }},
		{"block interrupted", CodeProtocol, func(r *rawClient) {
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock()})
			r.WritePing(false, [8]byte{})
		}},
		{"endless CONTINUATION", CodeCalm, func(r *rawClient) {
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock()})
			for range 40 {
				r.WriteContinuation(1, false, nil)
			}
		}},
		{"large header", CodeCalm, func(r *rawClient) {
			b := block(":method", "CONNECT", ":authority", "a:1", "baggage", large)
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16<<10]})
			for b = b[16<<10:]; len(b) > 16<<10; b = b[16<<10:] {
				r.WriteContinuation(1, false, b[:16<<10])
			}
			r.WriteContinuation(1, true, b)
		}},
		{"header bomb", CodeCalm, func(r *rawClient) {
			b := block("x", strings.Repeat("y", 3000))
			b = append(b, bytes.Repeat([]byte{0xbe}, 1000)...) // the same field a thousand times
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndHeaders: true})
		}},
		{"bad HPACK", CodeCompression, func(r *rawClient) {
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
		}},
		{"padding too long", CodeProtocol, func(r *rawClient) {
			r.connect(1)
			r.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{5, 0})
		}},
		{"SETTINGS flood", CodeCalm, func(r *rawClient) {
			for range 50 {
				r.WriteSettings()
			}
		}},
		{"PING flood", CodeCalm, func(r *rawClient) {
			for range 200 {
				r.WritePing(false, [8]byte{})
			}
		}},
		{"empty DATA flood", CodeCalm, func(r *rawClient) {
			r.connect(1)
			for range 2000 {
				r.WriteData(1, false, nil)
			}
		}},
		{"rapid reset", CodeCalm, func(r *rawClient) {
			for id := uint32(1); id < 4000; id += 2 {
				r.connect(id)
				r.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRawClient(t, Config{}, func(ctx context.Context, r *Request) { <-ctx.Done(); r.Refuse(503) })
			go tt.send(r)
			r.wantGoAway(tt.code)
		})
	}
}

func TestStreamErrors(t *testing.T) {
	hold := func(ctx context.Context, r *Request) { <-ctx.Done(); r.Refuse(503) }
	tests := []struct {
		name string
		code ErrCode
		send func(r *rawClient)
	}{
		{"beyond the window", CodeFlowControl, func(r *rawClient) {
			for range 20 {
				r.WriteData(1, false, make([]byte, 16<<10))
			}
		}},
		{"DATA after END_STREAM", CodeStreamClosed, func(r *rawClient) { r.WriteData(1, true, nil); r.WriteData(1, false, []byte("x")) }},
		{"second HEADERS", CodeProtocol, func(r *rawClient) { r.connect(1) }},
		{"window by 0", CodeFlowControl, func(r *rawClient) { r.WriteWindowUpdate(1, 0) }},
		{"window overflow", CodeFlowControl, func(r *rawClient) { r.WriteWindowUpdate(1, maxWindow) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRawClient(t, Config{}, hold)
			r.connect(1)
			tt.send(r)
			r.wantReset(1, tt.code)
			r.WritePing(false, [8]byte{9}) // the connection lives
			next(r, (*http2.PingFrame).IsAck)
		})
	}
}
