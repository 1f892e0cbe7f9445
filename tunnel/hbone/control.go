package hbone

import "encoding/binary"

// control handles every frame but DATA, with its whole payload.
func (r *reader) control(p []byte) error {
	c, f := r.c, r.f
	switch f.typ {
	case frameHeaders, frameContinuation:
		done, err := r.header.add(f, p)
		if err != nil || !done {
			return err
		}
		r.deliver()
		first := r.header.first
		if c.client {
			return c.onResponse(first.stream, first.has(flagEndStream), r.header.fields)
		}
		return c.onRequest(first.stream, first.has(flagEndStream), r.header.fields)
	case frameReset:
		r.deliver()
		return r.onReset(f.stream, ErrCode(uint32At(p)))
	case frameSettings:
		return r.onSettings(p)
	case framePing:
		return r.onPing(p)
	case frameGoAway:
		return c.onGoAway(uint32At(p)&^(1<<31), ErrCode(uint32At(p[4:])), string(p[8:min(len(p), 8+256)]))
	case frameWindowUpdate:
		return c.windowUpdate(f.stream, uint32At(p))
	}
	if r.empties.over(c.cfg.MaxResets) {
		return protocolError(CodeCalm, "too many frames of type %d", f.typ)
	}
	return nil
}

func (r *reader) onReset(id uint32, code ErrCode) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle(id) {
		return protocolError(CodeProtocol, "RST_STREAM on idle stream %d", id)
	}
	s := c.streams[id]
	if s == nil || s.closed {
		return nil
	}
	if !c.client {
		if err := c.countReset(); err != nil {
			return err
		}
	}
	if s.recvEnd && code == CodeNo {
		s.stopSending()
		return nil
	}
	s.abort(&ResetError{Code: code, Remote: true})
	return nil
}

// countReset counts a stream that was opened in vain: reset by its peer, or beyond the limit.
func (c *Conn) countReset() error {
	if c.resets.over(c.cfg.MaxResets) {
		return protocolError(CodeCalm, "more than %d resets a second", c.cfg.MaxResets)
	}
	return nil
}

// onSettings applies SETTINGS and acknowledges them.
func (r *reader) onSettings(p []byte) error {
	if r.f.has(flagAck) {
		return nil
	}
	c := r.c
	if r.settings.over(c.cfg.MaxSettings) || len(p) > 6*64 {
		return protocolError(CodeCalm, "too many SETTINGS")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		if err := c.applySetting(binary.BigEndian.Uint16(p), uint32At(p[2:])); err != nil {
			return err
		}
	}
	c.prefaceTimer.Stop()
	c.control(appendFrame(nil, frame{typ: frameSettings, flags: flagAck}))
	c.wakeWaiters()
	return nil
}

func (c *Conn) applySetting(id uint16, v uint32) error {
	switch id {
	case settingTableSize:
		c.enc.SetMaxDynamicTableSize(min(v, 4096))
	case settingPush:
		if v > 1 || c.client && v != 0 {
			return protocolError(CodeProtocol, "ENABLE_PUSH %d", v)
		}
	case settingMaxStreams:
		c.peerStreams = int(min(v, maxWindow))
	case settingWindow:
		return c.setInitialWindow(v)
	case settingMaxFrame:
		if v < minMaxFrame || v > maxMaxFrame {
			return protocolError(CodeProtocol, "MAX_FRAME_SIZE %d", v)
		}
		c.peerMaxFrame = int(v)
	}
	return nil
}

func (r *reader) onPing(p []byte) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.f.has(flagAck) {
		c.pinging = false
		if binary.BigEndian.Uint64(p) == pingShutdown && c.shutdownPinged && !c.goAwaySent {
			c.goAway(c.peerLast, CodeNo)
			c.endIfDrained()
		}
		return nil
	}
	if r.pings.over(c.cfg.MaxPings) {
		return protocolError(CodeCalm, "more than %d PINGs a second", c.cfg.MaxPings)
	}
	c.control(append(appendFrame(nil, frame{length: 8, typ: framePing, flags: flagAck}), p...))
	return nil
}

// onGoAway notes that the peer takes no more streams, and gives up those that it has not seen. To a
// server it says nothing: the client ends the connection when it is done.
func (c *Conn) onGoAway(last uint32, code ErrCode, text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if code != CodeNo {
		c.goAwayErr = &ProtocolError{Code: code, Reason: text, Remote: true}
	}
	if !c.client {
		return nil
	}
	c.closing = true
	for id, s := range c.streams {
		if id > last {
			s.abort(ErrGoAway)
		}
	}
	c.endIfDrained()
	return nil
}
