package docker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Kinds of frames in an engine's multiplexed stream:
// https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
const (
	frameStdout = 1
	frameStderr = 2
	frameEngine = 3 // an error of the engine itself
)

const maxEngineError = 4 << 10

// split takes a multiplexed stream apart. The size of a frame is the sender's word: nothing is set aside for it.
func split(r io.Reader, stdout, stderr io.Writer) error {
	in := bufio.NewReaderSize(r, 32<<10)
	var head [8]byte
	for {
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("output was cut off: %w", err)
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		to := stdout
		switch head[0] {
		case frameStdout:
		case frameStderr:
			to = stderr
		case frameEngine:
			text, _ := io.ReadAll(io.LimitReader(in, min(size, maxEngineError)))
			return fmt.Errorf("the engine says: %s", text)
		default:
			return fmt.Errorf("the engine's stream is damaged: a frame of kind %d", head[0])
		}
		if _, err := io.CopyN(to, in, size); err != nil {
			return fmt.Errorf("output was cut off: %w", err)
		}
	}
}

// meter counts the output of an execution against its limit.
type meter struct {
	over chan struct{} // closed when there is too much

	mu    sync.Mutex
	limit int64 // 0 = none
	count int64
}

func newMeter(limit int64) *meter { return &meter{over: make(chan struct{}), limit: limit} }

// take returns how many of n bytes may pass.
func (m *meter) take(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	allowed := int64(n)
	if m.limit > 0 && m.count+allowed > m.limit {
		allowed = max(m.limit-m.count, 0)
		if m.count <= m.limit {
			close(m.over)
		}
		m.count = m.limit + 1 // closed once
		return int(allowed)
	}
	m.count += allowed
	return int(allowed)
}

func (m *meter) total() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limit > 0 {
		return min(m.count, m.limit)
	}
	return m.count
}

// sink is where a stream goes: a pipe to whoever reads the execution's output. When nobody will, the rest is thrown away, so that the
// program goes on.
type sink struct {
	meter *meter
	pipe  *os.File
	gone  bool
}

func (s *sink) Write(p []byte) (int, error) {
	allowed := s.meter.take(len(p))
	if s.gone || allowed == 0 {
		return len(p), nil
	}
	if _, err := s.pipe.Write(p[:allowed]); err != nil {
		s.gone = true
	}
	return len(p), nil
}
