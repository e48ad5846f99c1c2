//go:build linux && cgo

package nvidia

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/lifecycle"
)

// library calls the driver's, one call at a time.
type library struct {
	nvml    nvml.Interface
	load    func() error            // maps it for good; its error says why it cannot
	lookup  func(name string) error // finds a function of what is mapped
	timeout time.Duration
	turn    chan struct{} // held by the call that is under way, and kept by one that hangs
	running lifecycle.Tasks

	mu     sync.Mutex
	loaded bool
	hangs  string          // the call that has not returned within its time
	has    map[string]bool // functions of the library
}

func newLibrary(path string, timeout time.Duration) *library {
	l := fromInterface(nvml.New(nvml.WithLibraryPath(path)), timeout)
	mapped := dl.New(path, dl.RTLD_LAZY|dl.RTLD_GLOBAL|dl.RTLD_NODELETE) // go-nvml would unmap it at the end of a session
	l.load, l.lookup = mapped.Open, mapped.Lookup
	return l
}

func fromInterface(i nvml.Interface, timeout time.Duration) *library {
	return &library{
		nvml: i, load: func() error { return nil }, lookup: func(string) error { return nil }, timeout: timeout, turn: make(chan struct{}, 1), has: map[string]bool{},
	}
}

// failure is what a function of the library has answered.
type failure struct {
	function string
	code     nvml.Return
}

func (f *failure) Error() string { return f.function + ": " + meaning(f.code) }

// meaning is the text of a code. The library's own function for it is one that it need not have.
func meaning(code nvml.Return) string {
	if s := meanings[code]; s != "" {
		return s
	}
	return fmt.Sprintf("error %d of the driver's library", code)
}

var meanings = map[nvml.Return]string{
	nvml.ERROR_UNINITIALIZED:           "the library is not initialized",
	nvml.ERROR_INVALID_ARGUMENT:        "an argument is not valid",
	nvml.ERROR_NOT_SUPPORTED:           "not supported",
	nvml.ERROR_NO_PERMISSION:           "no permission",
	nvml.ERROR_NOT_FOUND:               "not found",
	nvml.ERROR_INSUFFICIENT_POWER:      "external power is not attached to a GPU",
	nvml.ERROR_DRIVER_NOT_LOADED:       "the driver is not loaded",
	nvml.ERROR_TIMEOUT:                 "timeout",
	nvml.ERROR_IRQ_ISSUE:               "interrupts of a GPU do not arrive",
	nvml.ERROR_LIBRARY_NOT_FOUND:       "the library is not found",
	nvml.ERROR_FUNCTION_NOT_FOUND:      "the library does not have this function",
	nvml.ERROR_CORRUPTED_INFOROM:       "the GPU's info ROM is corrupted",
	nvml.ERROR_GPU_IS_LOST:             "the GPU has fallen off the bus",
	nvml.ERROR_RESET_REQUIRED:          "the GPU needs a reset",
	nvml.ERROR_OPERATING_SYSTEM:        "the system keeps the GPU from this process",
	nvml.ERROR_LIB_RM_VERSION_MISMATCH: "the library and the driver in the kernel are of different versions; start the agent anew",
	nvml.ERROR_IN_USE:                  "the GPU is in use",
	nvml.ERROR_MEMORY:                  "out of memory",
	nvml.ERROR_NOT_READY:               "not ready",
	nvml.ERROR_GPU_NOT_FOUND:           "there are no GPUs",
	nvml.ERROR_UNKNOWN:                 "unknown error",
}

// errHangs is the error of all calls while one has not returned within its time.
var errHangs = errors.New("the driver's library does not answer")

// code is what the library has answered, or SUCCESS where it was not that.
func codeOf(err error) nvml.Return {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return nvml.SUCCESS
}

// open loads the library.
func (l *library) open(ctx context.Context) error {
	l.mu.Lock()
	loaded := l.loaded
	l.mu.Unlock()
	if loaded {
		return nil
	}
	err := l.guarded(ctx, "loading the library", l.timeout, l.load)
	if err == nil {
		l.mu.Lock()
		l.loaded = true
		l.mu.Unlock()
	}
	return err
}

// call runs one function. Its first name is what errors say; the library has to have it, or one of the others, which are older versions.
func call[T any](ctx context.Context, l *library, names []string, timeout time.Duration, f func() (T, nvml.Return)) (T, error) {
	var out T
	if !l.offers(names) {
		return out, &failure{names[0], nvml.ERROR_FUNCTION_NOT_FOUND}
	}
	result := make(chan T, 1)
	err := l.guarded(ctx, names[0], timeout, func() error {
		v, code := f()
		if code != nvml.SUCCESS {
			return &failure{names[0], code}
		}
		result <- v
		return nil
	})
	if err == nil {
		out = <-result
	}
	return out, err
}

// offers reports whether the library has one of these functions.
func (l *library) offers(names []string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range names {
		has, known := l.has[name]
		if !known && l.loaded {
			has = l.lookup(name) == nil
			l.has[name] = has
		}
		if has {
			return true
		}
	}
	return false
}

// guarded runs f away from the caller, when nothing else runs. After timeout it is left alone with the library.
func (l *library) guarded(ctx context.Context, name string, timeout time.Duration, f func() error) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	if err := l.stuck(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
	case <-timer.C:
		if err := l.stuck(); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w: it is busy", name, errHangs)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	if !l.running.Go(func() {
		err := lifecycle.Guard(f)
		l.mu.Lock()
		done <- err
		l.hangs = ""
		l.mu.Unlock()
		<-l.turn
	}) {
		<-l.turn
		return errors.New("the node has stopped to use the driver's library")
	}
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	l.mu.Lock()
	select {
	case err := <-done: // at the last moment
		l.mu.Unlock()
		return err
	default:
	}
	l.hangs = name
	l.mu.Unlock()
	return l.stuck()
}

// stuck is the error of a call that hangs, or nil.
func (l *library) stuck() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hangs == "" {
		return nil
	}
	return fmt.Errorf("%w: %s has not returned", errHangs, l.hangs)
}
