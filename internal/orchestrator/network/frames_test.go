//go:build linux

package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits for something that the kernel or another goroutine does, and that nobody announces.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
		time.Sleep(time.Millisecond)
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func udpFrame(to, from net.HardwareAddr, src, dst netip.Addr, port uint16) []byte {
	return udpFrameWith(to, from, src, dst, port, []byte("hello"))
}

func udpFrameWith(to, from net.HardwareAddr, src, dst netip.Addr, port uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	f = append(f, 8, 0)
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	udp := binary.BigEndian.AppendUint16(nil, 40000)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0) // no checksum
	return append(append(append(f, ip...), udp...), payload...)
}

func arpFrame(from net.HardwareAddr, claims, asks netip.Addr, op uint16) []byte {
	f := append([]byte{255, 255, 255, 255, 255, 255}, from...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4)
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(append(f, from...), claims.AsSlice()...)
	return append(append(f, 0, 0, 0, 0, 0, 0), asks.AsSlice()...)
}

// neighbourAdvertisement claims fe80::1 for the sender, to everybody.
func neighbourAdvertisement(from net.HardwareAddr) []byte {
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, from...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255)
	src, all := netip.MustParseAddr("fe80::1").As16(), netip.MustParseAddr("ff02::1").As16()
	f = append(append(f, src[:]...), all[:]...)
	f = append(f, 136, 0, 0, 0, 0x20, 0, 0, 0)
	f = append(f, src[:]...)
	return append(append(f, 2, 1), from...)
}

// send puts frames on the runner's interface.
func (r *runner) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	in(t, r.ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		i, err := net.InterfaceByName(inside)
		if err != nil {
			return err
		}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
}

// synFlood begins connections to ports that nobody answers, without waiting.
func (r *runner) synFlood(t testing.TB, n int) (fds []int) {
	t.Helper()
	in(t, r.ns, func() error {
		for i := range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 1000 + i, Addr: [4]byte{198, 51, 100, 7}})
			if err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	})
	return fds
}

// sniffer sees what arrives at an interface.
type sniffer struct{ fd int }

func listenFrames(t testing.TB, ns *os.File) *sniffer { return listenFramesOn(t, ns, inside) }

func listenFramesOn(t testing.TB, ns *os.File, name string) *sniffer {
	t.Helper()
	s := &sniffer{}
	in(t, ns, func() (err error) {
		const every = uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: i.Index})
	})
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// now returns what has arrived.
func (s *sniffer) now() (frames [][]byte) {
	for {
		b := make([]byte, 2048)
		n, _, err := unix.Recvfrom(s.fd, b, 0)
		if err != nil {
			return frames
		}
		if n >= 14 {
			frames = append(frames, b[:n])
		}
	}
}

// until waits for a frame and returns all up to it.
func (s *sniffer) until(t testing.TB, last func([]byte) bool) (frames [][]byte) {
	t.Helper()
	eventually(t, func() bool {
		got := s.now()
		frames = append(frames, got...)
		for _, f := range got {
			if len(f) > 34 && last(f) {
				return true
			}
		}
		return false
	})
	return frames
}
