//go:build linux && cgo

package nvidia

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/model"
)

// closeWithin bounds how long the end of a session is waited for.
const closeWithin = 3 * time.Second

// Plugin is the NVIDIA driver's part of a node.
type Plugin struct {
	cfg     Config
	library *library

	// Of the one Watch alone.
	sick      map[string]string // what the driver has reported of an instance, by its id
	strained  map[string]int    // how often in a row a GPU was seen to be slowed down, at most slowFor
	seen      map[string]*gpu   // GPUs of the look before, by UUID
	listening <-chan struct{}   // closed when a wait for events has returned that did not in time; nil = there is none

	begun atomic.Int32 // sessions that the library has begun and not ended; it counts them too

	mu      sync.Mutex
	report  device.Report
	targets []target          // instances of the session, for their figures
	rest    map[string]uint64 // bytes of memory that an instance uses while nothing computes on it, by its id
	doubted map[string]bool   // ids of instances that had an end of a task and were not seen without anything since
	looks   uint64            // that were told of
	specs   map[string][]byte // that were made since the last look, by their ids
}

// New prepares a plugin. It loads nothing.
func New(cfg Config) *Plugin {
	cfg = cfg.withDefaults()
	return newPlugin(cfg, newLibrary(cfg.Library, cfg.CallTimeout))
}

func newPlugin(cfg Config, l *library) *Plugin {
	return &Plugin{cfg: cfg, library: l, sick: map[string]string{}, strained: map[string]int{}, seen: map[string]*gpu{}, rest: map[string]uint64{}, doubted: map[string]bool{},
		specs: map[string][]byte{}}
}

// Name is "nvidia".
func (p *Plugin) Name() string { return Name }

// errAnew ends a session in favour of another one.
var errAnew = errors.New("the driver's GPUs are looked for anew")

// Watch keeps a session with the driver. Between two that failed it waits as long as between two looks.
func (p *Plugin) Watch(ctx context.Context, publish func(device.Report)) error {
	tell := func(r device.Report) {
		p.mu.Lock()
		p.report = r
		p.looks++
		clear(p.specs)
		p.mu.Unlock()
		publish(r)
	}
	for {
		err := p.session(ctx, tell)
		p.mu.Lock()
		p.targets = nil
		last := p.report
		p.mu.Unlock()
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errAnew) {
			continue // it has waited already
		}
		why := explain(err, p.cfg.Library)
		r := device.Report{Detected: !missing(err), Description: why, Groups: device.Unhealthy(last.Groups, why)}
		if missing(err) {
			r.Groups = nil
		}
		tell(r)
		if !errors.Is(err, errHangs) {
			clear(p.sick) // the driver starts over, and its GPUs with it
			clear(p.strained)
			p.mu.Lock()
			clear(p.rest)
			p.mu.Unlock()
		}
		wait(ctx, p.cfg.Poll)
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	if err := p.library.running.Wait(bounded); err != nil {
		p.cfg.Log.WithError(err).Warn("a call into NVIDIA's library hangs and is left behind")
	}
	return ctx.Err()
}

// notLoaded is the error of a library that is not there or cannot be loaded.
type notLoaded struct{ error }

func (e notLoaded) Unwrap() error { return e.error }

// missing reports whether there is no driver at all, so that GPUs are none rather than ill.
func missing(err error) bool {
	_, ok := errors.AsType[notLoaded](err)
	return ok
}

// explain is the sentence about a session that failed.
func explain(err error, library string) string {
	switch {
	case missing(err):
		return fmt.Sprintf("no driver of NVIDIA: %s cannot be loaded: %v", library, err)
	case errors.Is(err, errHangs):
		return err.Error()
	}
	return fmt.Sprintf("NVIDIA's driver does not work: %v", err)
}

// session looks after the GPUs until something is wrong with the driver, or different.
func (p *Plugin) session(ctx context.Context, tell func(device.Report)) (err error) {
	l := p.library
	if err := l.open(ctx); err != nil {
		if errors.Is(err, errHangs) || ctx.Err() != nil {
			return err
		}
		return notLoaded{err}
	}
	before := p.signature()
	if err := p.begin(ctx); err != nil {
		return err
	}
	events := newEvents(l, p.cfg.Log)
	free := func() bool { // nobody waits for the events of an earlier session
		select {
		case <-p.listening:
			p.listening = nil
		default:
		}
		return p.listening == nil
	}
	deaf := !free()
	defer func() {
		if !free() {
			return // a session that somebody still waits in is not ended
		}
		if events.close() {
			p.end(ctx)
		} else {
			p.listening = events.done
			p.cfg.Log.Warn("the wait for events of NVIDIA's driver does not end; until it does, GPUs are only looked at from time to time")
		}
	}()
	ticker := time.NewTicker(p.cfg.Poll)
	defer ticker.Stop()
	for {
		found, err := p.survey(ctx)
		if err != nil {
			return err
		}
		if !deaf { // one that hangs is enough
			if err := events.subscribe(ctx, found.gpus); err != nil {
				return err
			}
		}
		p.restful(ctx, found.targets)
		p.mu.Lock()
		p.targets = found.targets
		there := func(id string) bool {
			return slices.ContainsFunc(found.targets, func(t target) bool { return t.sample.ID == id })
		}
		maps.DeleteFunc(p.rest, func(id string, _ uint64) bool { return !there(id) })
		maps.DeleteFunc(p.doubted, func(id string, _ bool) bool { return !there(id) })
		p.mu.Unlock()
		tell(found.report)
		for again := false; !again; {
			select {
			case x := <-events.xids:
				again = p.heed(x, found)
			case <-p.listening: // and the next session can hear again
				return errAnew
			case <-ticker.C:
				again = true
				if now := p.signature(); now != before || found.lost {
					return errAnew
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// begin is nvmlInit. That there are no GPUs is no error of it.
func (p *Plugin) begin(ctx context.Context) error {
	l := p.library
	_, err := call(ctx, l, []string{"nvmlInit_v2", "nvmlInit"}, 6*p.cfg.CallTimeout, func() (none, nvml.Return) {
		code := l.nvml.Init()
		if code == nvml.SUCCESS {
			p.begun.Add(1)
		}
		return none{}, code
	})
	return err
}

// end is nvmlShutdown, as often as there was an nvmlInit.
func (p *Plugin) end(ctx context.Context) {
	l := p.library
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	for ; p.begun.Load() > 0; p.begun.Add(-1) {
		if _, err := call(bounded, l, []string{"nvmlShutdown"}, closeWithin, func() (none, nvml.Return) { return none{}, l.nvml.Shutdown() }); err != nil {
			p.cfg.Log.WithError(err).Warn("the session with NVIDIA's driver could not be ended")
			if errors.Is(err, errHangs) {
				return
			}
		}
	}
}

type none = struct{}

// signature is what the kernel tells of the driver and its GPUs without the library.
func (p *Plugin) signature() string {
	version, _ := os.ReadFile(p.cfg.Proc + "/driver/nvidia/version")
	entries, _ := os.ReadDir(p.cfg.Proc + "/driver/nvidia/gpus")
	var b strings.Builder
	b.Write(version)
	for _, e := range entries {
		b.WriteString("\n" + e.Name())
	}
	return b.String()
}

// heed notes an error that the driver has reported, and reports whether anything has to be told of.
func (p *Plugin) heed(x xid, found survey) bool {
	why := diagnosis(x.code)
	p.cfg.Log.WithField("xid", x.code).WithField("device", x.uuid).Info("NVIDIA's driver has reported an error")
	if why == "" {
		return false
	}
	for _, g := range found.gpus {
		if x.uuid != "" && g.uuid != x.uuid { // of an error that is nobody's each may be the one that has it
			continue
		}
		for _, u := range g.units {
			if x.instance == nil || u.instance == nil || *x.instance == *u.instance {
				p.sick[u.id] = why
			}
		}
	}
	return true
}

// Reserve says how a task is told of its instances. A slot is told of as its GPU, and how much memory of it is the task's.
func (p *Plugin) Reserve(ids []string) (map[string]string, error) {
	p.mu.Lock()
	r := p.report
	p.mu.Unlock()
	visible, shares := map[string]bool{}, map[string]int{}
	for _, id := range ids {
		d, in := r.Instance(id)
		switch {
		case in == nil:
			return nil, fault.New(fault.NotFound, "GPU %s is not there", id)
		case !in.Healthy:
			return nil, fault.New(fault.Unavailable, "GPU %s is unhealthy: %s", id, in.HealthDescription)
		}
		if whole, slot := model.SlotParent(id); slot {
			shares[whole] += d.MemoryMB()
			id = whole
		}
		visible[id] = true
	}
	if len(ids) == 0 {
		return nil, nil
	}
	env := map[string]string{VisibleDevices: strings.Join(slices.Sorted(maps.Keys(visible)), ",")}
	if len(shares) > 0 {
		var list []string
		for _, whole := range slices.Sorted(maps.Keys(shares)) {
			list = append(list, fmt.Sprintf("%s=%d", whole, shares[whole]))
		}
		env[MemoryShare] = strings.Join(list, ",")
	}
	return env, nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
