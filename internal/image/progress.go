package image

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Progress is how far a pull is.
type Progress struct {
	Reference          string
	Layers, LayersDone int   // of those that are not there already
	Bytes, BytesDone   int64 // as they are transferred, which is compressed; Bytes is 0 when not known
	Finished           bool
}

func (p Progress) String() string {
	const mb = 1_000_000
	if p.Finished {
		return fmt.Sprintf("Downloaded image %s: %d layers, %.1f MB", p.Reference, p.LayersDone, float64(p.BytesDone)/mb)
	}
	return fmt.Sprintf("Downloading image %s: %d of %d layers, %.1f of %.1f MB", p.Reference, p.LayersDone, p.Layers, float64(p.BytesDone)/mb, float64(p.Bytes)/mb)
}

// maxPause is the longest time between two notes about a pull. The first follow each other faster; each becomes an entry in a log that is replicated.
const maxPause = 15 * time.Second

// meter counts a pull and tells whoever listens.
type meter struct {
	layersDone, bytesDone atomic.Int64

	mu        sync.Mutex
	plan      Progress
	begun     chan struct{}
	listeners []func(Progress)
}

func (m *meter) add(listen func(Progress)) {
	if listen == nil {
		return
	}
	m.mu.Lock()
	m.listeners = append(m.listeners, listen)
	begun := m.plan.Layers > 0
	m.mu.Unlock()
	if begun {
		listen(m.now())
	}
}

func (m *meter) start() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.begun == nil {
		m.begun = make(chan struct{})
	}
	return m.begun
}

// begin says what there is to do.
func (m *meter) begin(plan Progress) {
	begun := m.start()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plan = plan
	select {
	case <-begun:
	default:
		close(m.begun)
	}
}

func (m *meter) now() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.plan
	p.LayersDone, p.BytesDone = int(m.layersDone.Load()), m.bytesDone.Load()
	return p
}

func (m *meter) report(p Progress) {
	m.mu.Lock()
	listeners := m.listeners
	m.mu.Unlock()
	for _, listen := range listeners {
		listen(p)
	}
}

// tell reports at the beginning, in growing steps, and at the end when there was anything to do.
func (m *meter) tell(ctx context.Context) {
	select {
	case <-m.start():
	case <-ctx.Done():
		return
	}
	m.report(m.now())
	pause := time.Second
	timer := time.NewTimer(pause)
	defer timer.Stop()
	last := m.now()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			if p := m.now(); p.LayersDone == p.Layers {
				p.Finished = true
				m.report(p)
			}
			return
		}
		if p := m.now(); p != last {
			m.report(p)
			last = p
		}
		pause = min(2*pause, maxPause)
		timer.Reset(pause)
	}
}
