//go:build linux && cgo

package nvidia

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
)

const (
	// eventWait is how long one wait for events may take: the end of a session is not noticed before, and so long does an agent's stop take.
	eventWait = 250 * time.Millisecond
	// maxXIDs bounds how many events wait to be read. The driver itself merges those of one GPU.
	maxXIDs = 64
	// wholeDevice is the id of an instance in an event that is about no part of a GPU.
	wholeDevice = 0xFFFFFFFF
)

// xid is an error that the driver has reported.
type xid struct {
	code     uint64
	uuid     string  // of the GPU; "" = nobody knows
	instance *uint32 // the part of the GPU that it is about; nil = all of it
}

// events waits for errors on behalf of a session.
type events struct {
	library *library
	log     logging.Logger
	xids    chan xid
	waiting lifecycle.Tasks
	ended   atomic.Bool
	set     nvml.EventSet // nil = there is none (yet)
	done    chan struct{} // closed when nobody waits any more; nil = nobody does
	known   sync.Map      // UUIDs by handle of the GPU
}

func newEvents(l *library, log logging.Logger) *events {
	return &events{library: l, log: log, xids: make(chan xid, maxXIDs)}
}

// subscribe asks for the events of GPUs that are new. A driver or a GPU without events is no error: everything else is still looked at from time to time.
func (e *events) subscribe(ctx context.Context, gpus []*gpu) error {
	l := e.library
	for _, g := range gpus {
		if g.handle == nil {
			continue
		}
		if _, known := e.known.LoadOrStore(g.handle, g.uuid); known {
			continue
		}
		if e.set == nil {
			if !l.offers([]string{"nvmlEventSetWait_v2", "nvmlEventSetWait"}) || !l.offers([]string{"nvmlEventSetFree"}) {
				return nil
			}
			set, err := call(ctx, l, []string{"nvmlEventSetCreate"}, l.timeout, l.nvml.EventSetCreate)
			if err != nil {
				e.log.WithError(err).Info("NVIDIA's driver reports no errors by itself, GPUs are only looked at from time to time")
				return broken(err)
			}
			e.set = set
		}
		types, err := call(ctx, l, []string{"nvmlDeviceGetSupportedEventTypes"}, l.timeout, g.handle.GetSupportedEventTypes)
		if err == nil && types&nvml.EventTypeXidCriticalError != 0 {
			_, err = call(ctx, l, []string{"nvmlDeviceRegisterEvents"}, l.timeout, func() (none, nvml.Return) {
				return none{}, g.handle.RegisterEvents(nvml.EventTypeXidCriticalError, e.set)
			})
		}
		if broken(err) != nil {
			return err
		}
	}
	if e.set != nil && e.done == nil {
		e.done = make(chan struct{})
		e.waiting.Go(func() {
			defer close(e.done)
			if err := lifecycle.Guard(e.wait); err != nil {
				e.log.WithError(err).Warn("errors that NVIDIA's driver reports are not heard any more in this session")
			}
		})
	}
	return nil
}

// wait reads events until the session ends. It has the library beside whoever has the turn: waiting is what the driver lets several do.
func (e *events) wait() error {
	for !e.ended.Load() {
		data, code := e.set.Wait(uint32(eventWait / time.Millisecond))
		if code == nvml.ERROR_TIMEOUT {
			continue
		}
		if code != nvml.SUCCESS {
			return &failure{"nvmlEventSetWait", code}
		}
		if data.EventType != nvml.EventTypeXidCriticalError {
			continue
		}
		x := xid{code: data.EventData}
		if uuid, ok := e.known.Load(data.Device); ok { // a GPU that is lost would not tell it any more
			x.uuid = uuid.(string)
		}
		if data.GpuInstanceId != wholeDevice {
			x.instance = &data.GpuInstanceId
		}
		for !e.ended.Load() {
			select {
			case e.xids <- x:
			case <-time.After(eventWait):
				continue
			}
			break
		}
	}
	return nil
}

// close reports whether nobody is in the library any more on behalf of the session.
func (e *events) close() bool {
	e.ended.Store(true)
	if e.done != nil {
		t := time.NewTimer(eventWait + closeWithin)
		defer t.Stop()
		select {
		case <-e.done:
		case <-t.C:
			return false
		}
	}
	if e.set != nil {
		l := e.library
		if _, err := call(context.Background(), l, []string{"nvmlEventSetFree"}, closeWithin, func() (none, nvml.Return) { return none{}, e.set.Free() }); err != nil {
			e.log.WithError(err).Debug("a set of events could not be freed")
		}
	}
	return true
}
