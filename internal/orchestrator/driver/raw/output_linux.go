package raw

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
)

// The output of a process goes through FIFOs, so that it is not lost when the agent starts anew: the process holds both ends of its own, what it writes
// meanwhile waits in the kernel (64 KiB a stream, then the process waits), and the next agent reads on. What waits is lost only if the process and all
// that it left behind end while there is no agent.

// drainTimeout bounds how long the output of a process that has ended is waited for.
const drainTimeout = 2 * time.Second

var streams = []string{"stdout", "stderr"}

func (d *Driver) fifo(taskID, stream string) string {
	return filepath.Join(d.cfg.Dir, url.PathEscape(taskID)+"."+stream)
}

// output is how the streams of one process are read.
type output struct {
	readers []*os.File // by stream; nil = not wanted
	writers []*os.File // for the process; closed once it has them
	reading sync.WaitGroup
	drained chan struct{}
}

// openOutput opens the FIFOs of a task, and makes them for a new process.
func (d *Driver) openOutput(cfg driver.TaskConfig, fresh bool) (_ *output, err error) {
	o := &output{readers: make([]*os.File, len(streams)), writers: make([]*os.File, len(streams)), drained: make(chan struct{})}
	defer func() {
		if err != nil {
			o.close()
			err = fmt.Errorf("output of process: %w", err)
		}
	}()
	for i, to := range []io.Writer{cfg.Stdout, cfg.Stderr} {
		if to == nil {
			continue
		}
		path := d.fifo(cfg.ID, streams[i])
		if fresh {
			if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
		}
		if o.readers[i], err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0); err != nil {
			if !fresh && errors.Is(err, os.ErrNotExist) { // nobody wanted its output when it was started
				o.readers[i] = nil
				continue
			}
			return nil, err
		}
		if fresh { // for reading too: without an agent there is no other reader, and writing must wait, not fail
			if o.writers[i], err = os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0); err != nil {
				return nil, err
			}
		}
	}
	return o, nil
}

// stdio is what the process gets for a stream; nil = nothing.
func (o *output) stdio(i int) io.Writer {
	if o.writers[i] == nil {
		return nil
	}
	return o.writers[i]
}

// read carries what comes to where it is wanted, until all writers have gone or the readers are closed.
func (o *output) read(cfg driver.TaskConfig, goroutines *sync.WaitGroup) {
	for _, w := range o.writers {
		if w != nil {
			_ = w.Close()
		}
	}
	for i, to := range []io.Writer{cfg.Stdout, cfg.Stderr} {
		if r := o.readers[i]; r != nil {
			o.reading.Go(func() { _, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{r}, make([]byte, 16<<10)) })
		}
	}
	goroutines.Go(func() {
		o.reading.Wait()
		close(o.drained)
	})
}

// lastWords waits until all that the process wrote is read. What it left behind may hold the streams open, and is not waited for.
func (o *output) lastWords() {
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-o.drained:
	case <-t.C:
	}
}

// close ends the reading.
func (o *output) close() {
	for _, f := range append(o.readers, o.writers...) {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (d *Driver) removeOutput(taskID string) error {
	var errs []error
	for _, s := range streams {
		if err := os.Remove(d.fifo(taskID, s)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove output of process: %w", err))
		}
	}
	return errors.Join(errs...)
}
