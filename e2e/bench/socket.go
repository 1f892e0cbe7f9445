package main

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// setCubic sets the congestion control of a socket; connections that a listener accepts inherit it.
func setCubic(_, _ string, raw syscall.RawConn) error {
	var err error
	if control := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	}); control != nil {
		return control
	}
	if err != nil {
		return fmt.Errorf("congestion control cubic (modprobe tcp_cubic?): %w", err)
	}
	return nil
}
