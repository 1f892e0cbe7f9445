package cni

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	network = "unixpacket"
	// maxFiles is how many descriptors a message is read with. One is allowed; with room for some more a
	// peer that sends two is told so.
	maxFiles = 4
)

// send sends one message, with file beside it unless that is nil.
func send(c *net.UnixConn, data []byte, file *os.File) error {
	var rights []byte
	if file != nil {
		raw, err := file.SyscallConn()
		if err != nil {
			return fmt.Errorf("descriptor: %w", err)
		}
		var sendErr error
		// Not Fd, which may make the descriptor blocking; and the descriptor stays open while Control runs.
		if err := raw.Control(func(fd uintptr) {
			rights = unix.UnixRights(int(fd))
			_, _, sendErr = c.WriteMsgUnix(data, rights, nil)
		}); err != nil {
			return fmt.Errorf("descriptor: %w", err)
		}
		return sendErr
	}
	_, _, err := c.WriteMsgUnix(data, nil, nil)
	return err
}

// receive receives one message and its descriptors, which the caller closes. With an error there are none.
func receive(c *net.UnixConn) ([]byte, []*os.File, error) {
	// One byte more than allowed, so that a longer message is seen to be longer.
	data, oob := make([]byte, MaxMessage+1), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	files, rightsErr := parseRights(oob[:oobn])
	switch {
	case err != nil:
	case n == 0 && oobn == 0:
		err = io.EOF
	case n > MaxMessage || flags&unix.MSG_TRUNC != 0:
		err = &Error{Code: CodeInvalidRequest, Msg: errTooLarge.Error()}
	case flags&unix.MSG_CTRUNC != 0:
		err = &Error{Code: CodeInvalidRequest, Msg: "message has too many descriptors"}
	case rightsErr != nil:
		err = fmt.Errorf("descriptors: %w", rightsErr)
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return data[:n], files, nil
}

// parseRights returns every descriptor that there is, also beside an error: the kernel has installed them, and
// whoever drops them must close them. (Package net asks for close-on-exec.)
func parseRights(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	var files []*os.File
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, parseErr := unix.ParseUnixRights(&messages[i])
		err = errors.Join(err, parseErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "network namespace"))
		}
	}
	return files, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// PeerUID returns the user that the other end of a unix socket ran as when it connected or listened.
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}
