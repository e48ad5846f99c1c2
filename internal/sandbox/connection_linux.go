//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const requestTimeout = 15 * time.Second

// connection is one request to the supervisor and the events that answer it.
type connection struct{ *net.UnixConn }

func (c connection) close() { _ = c.Close() }

func (s *Sandbox) dial(ctx context.Context) (connection, error) {
	raw, err := s.dir.SyscallConn()
	if err != nil {
		return connection{}, err
	}
	var conn net.Conn
	// The directory stays open for as long as its number is in use.
	if controlErr := raw.Control(func(fd uintptr) {
		dialer := net.Dialer{Timeout: requestTimeout}
		conn, err = dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, socketFile))
	}); controlErr != nil {
		return connection{}, ErrEnded
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return connection{}, ErrEnded
	}
	if err != nil {
		return connection{}, fmt.Errorf("reach the supervisor: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	return connection{conn.(*net.UnixConn)}, nil
}

// request sends a header with descriptors, then the body.
func (c connection) request(kind uint32, message []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(header(kind, len(message), len(fds)), rights, nil); err != nil {
		return fmt.Errorf("send to the supervisor: %w", err)
	}
	if len(message) > 0 {
		if _, err := c.Write(message); err != nil {
			return fmt.Errorf("send to the supervisor: %w", err)
		}
	}
	return nil
}

// receive waits for the next event and takes over its descriptors.
func (c connection) receive() (event, []int, error) {
	message, control := make([]byte, eventSize), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := c.ReadMsgUnix(message, control)
	var fds []int
	if parsed, parseErr := unix.ParseSocketControlMessage(control[:oobn]); parseErr == nil {
		for i := range parsed {
			if rights, err := unix.ParseUnixRights(&parsed[i]); err == nil {
				fds = append(fds, rights...)
			}
		}
	}
	if err != nil {
		closeNumbers(fds)
		return event{}, nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	e, err := parseEvent(message[:n])
	if err != nil {
		closeNumbers(fds)
		return event{}, nil, err
	}
	return e, fds, nil
}

func closeNumbers(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
