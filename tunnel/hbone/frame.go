package hbone

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	headerLen     = 9
	defaultWindow = 65535 // both windows, until SETTINGS and WINDOW_UPDATE say otherwise
)

type frameType uint8

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingTableSize     = 1
	settingPush          = 2
	settingMaxStreams    = 3
	settingWindow        = 4
	settingMaxFrame      = 5
	settingMaxHeaderList = 6
)

// ErrCode is an HTTP/2 error code (RFC 9113, section 7).
type ErrCode uint32

// The error codes that this package sends or treats specially.
const (
	CodeNo              ErrCode = 0x0
	CodeProtocol        ErrCode = 0x1
	CodeInternal        ErrCode = 0x2
	CodeFlowControl     ErrCode = 0x3
	CodeSettingsTimeout ErrCode = 0x4
	CodeStreamClosed    ErrCode = 0x5
	CodeFrameSize       ErrCode = 0x6
	CodeRefusedStream   ErrCode = 0x7
	CodeCancel          ErrCode = 0x8
	CodeCompression     ErrCode = 0x9
	CodeCalm            ErrCode = 0xb
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// The reasons for which a connection or a stream cannot be used.
var (
	ErrClosed     = errors.New("HBONE connection closed")
	ErrGoAway     = errors.New("HBONE connection is going away")
	ErrStreams    = errors.New("HBONE connection carries as many streams as its peer allows")
	errPeerClosed = errors.New("peer closed the HBONE connection")
)

// ProtocolError ends a connection: one side broke the protocol, or asked for too much.
type ProtocolError struct {
	Code   ErrCode
	Reason string
	Remote bool // the peer said so, in a GOAWAY
}

func (e *ProtocolError) Error() string {
	if e.Remote {
		return fmt.Sprintf("peer ended the HBONE connection: %s %s", e.Code, e.Reason)
	}
	return fmt.Sprintf("HBONE peer broke the protocol: %s (%s)", e.Reason, e.Code)
}

// ResetError ends a stream: RST_STREAM was sent or, if Remote, received.
type ResetError struct {
	Code   ErrCode
	Remote bool
	Cause  error // why we sent it
}

func (e *ResetError) Error() string {
	switch {
	case e.Remote:
		return fmt.Sprintf("stream reset by peer: %s", e.Code)
	case e.Cause != nil:
		return fmt.Sprintf("stream reset (%s): %v", e.Code, e.Cause)
	}
	return fmt.Sprintf("stream reset: %s", e.Code)
}

func (e *ResetError) Unwrap() error { return e.Cause }

// StatusError is a peer's answer to CONNECT that is not 200.
type StatusError struct{ Code int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("peer refused CONNECT with status %d", e.Code)
}

func protocolError(code ErrCode, format string, args ...any) error {
	return &ProtocolError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// frame is the header of a frame.
type frame struct {
	length int
	typ    frameType
	flags  uint8
	stream uint32
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

func parseFrame(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    frameType(b[3]),
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) &^ (1 << 31),
	}
}

func putFrame(b []byte, f frame) {
	b[0], b[1], b[2] = byte(f.length>>16), byte(f.length>>8), byte(f.length)
	b[3], b[4] = byte(f.typ), f.flags
	binary.BigEndian.PutUint32(b[5:], f.stream)
}

func appendFrame(b []byte, f frame) []byte {
	var h [headerLen]byte
	putFrame(h[:], f)
	return append(b, h[:]...)
}

func appendUint32Frame(b []byte, typ frameType, stream, v uint32) []byte {
	b = appendFrame(b, frame{length: 4, typ: typ, stream: stream})
	return binary.BigEndian.AppendUint32(b, v)
}

type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, settings []setting) []byte {
	b = appendFrame(b, frame{length: 6 * len(settings), typ: frameSettings})
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}

// check refuses what no frame of that type may look like (RFC 9113, section 6), before its payload
// is read.
func (f frame) check(maxFrame int) error {
	if f.length > maxFrame {
		return protocolError(CodeFrameSize, "frame of %d bytes, limit %d", f.length, maxFrame)
	}
	onStream, size := false, -1
	switch f.typ {
	case frameData, frameHeaders, frameContinuation:
		onStream = true
	case framePriority:
		onStream, size = true, 5
	case frameReset:
		onStream, size = true, 4
	case framePushPromise:
		return protocolError(CodeProtocol, "PUSH_PROMISE")
	case framePing:
		size = 8
	case frameWindowUpdate:
		onStream, size = f.stream != 0, 4
	case frameSettings:
		if f.length%6 != 0 || f.has(flagAck) && f.length != 0 {
			return protocolError(CodeFrameSize, "SETTINGS of %d bytes", f.length)
		}
	case frameGoAway:
		if f.length < 8 {
			return protocolError(CodeFrameSize, "GOAWAY of %d bytes", f.length)
		}
	default:
		return nil
	}
	if onStream != (f.stream != 0) {
		return protocolError(CodeProtocol, "frame of type %d on stream %d", f.typ, f.stream)
	}
	if size >= 0 && f.length != size {
		return protocolError(CodeFrameSize, "frame of type %d with %d bytes", f.typ, f.length)
	}
	return nil
}
