// Package audit writes who asked what of the API and how it ended, a line of JSON each. No body, no query and no secret is in it.
//
// Lines are written by one goroutine behind a bounded queue. When the disk cannot keep up, requests are not held up: what did not fit is counted, and the
// count is a line of its own, so that a gap is never silent.
package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"rockpool/internal/endpoint"
	"rockpool/internal/logging"
)

const (
	queued   = 4096     // requests
	maxBytes = 64 << 20 // of a file before the next one begins
	kept     = 4        // old files, beside the newest
)

// line is what is kept of a request.
type line struct {
	Time       string            `json:"time"`
	Route      string            `json:"route,omitempty"`
	Method     string            `json:"method,omitempty"`
	Path       string            `json:"path,omitempty"`
	Vars       map[string]string `json:"vars,omitempty"`
	Status     int               `json:"status,omitempty"`
	DurationMS float64           `json:"duration_ms,omitempty"`
	Accessor   string            `json:"accessor,omitempty"` // of the token; "" = none, or the configured one
	Name       string            `json:"name,omitempty"`
	Management bool              `json:"management,omitempty"`
	Node       string            `json:"node,omitempty"`
	Remote     string            `json:"remote,omitempty"`
	Lost       int64             `json:"lost,omitempty"` // requests that are not in the log since the last line
}

// Log is the audit log. New starts nothing; Run writes.
type Log struct {
	path  string
	limit int64
	log   logging.Logger
	queue chan line
	lost  atomic.Int64
}

// New makes a log that appends to a file and keeps 4 older ones of 64 MiB beside it: path.1 is the newest of them.
func New(path string, l logging.Logger) *Log {
	return &Log{path: path, limit: maxBytes, log: l, queue: make(chan line, queued)}
}

// Note takes a request. It does not block.
func (l *Log) Note(o endpoint.Observation) {
	entry := line{
		Time: time.Now().UTC().Format(time.RFC3339Nano), Route: o.Route, Method: o.Method, Path: o.Path, Vars: o.Vars, Status: o.Status,
		DurationMS: float64(o.Duration.Microseconds()) / 1000, Accessor: o.Caller.Accessor, Name: o.Caller.Name, Management: o.Caller.Management,
		Node: o.Caller.NodeID, Remote: o.Remote,
	}
	select {
	case l.queue <- entry:
	default:
		l.lost.Add(1)
	}
}

// Run writes until ctx ends, and then what is queued.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case first := <-l.queue:
			l.batch(first)
		case <-ctx.Done():
			select {
			case first := <-l.queue:
				l.batch(first)
			default:
			}
			return nil
		}
	}
}

// batch writes a line and all that wait behind it. What cannot be written is lost, and counted.
func (l *Log) batch(first line) {
	lines := []line{first}
	for more := true; more; {
		select {
		case next := <-l.queue:
			lines = append(lines, next)
		default:
			more = false
		}
	}
	if n := l.lost.Swap(0); n > 0 {
		lines = append([]line{{Time: lines[0].Time, Lost: n}}, lines...)
	}
	if err := l.write(lines); err != nil {
		l.lost.Add(int64(len(lines)))
		l.log.WithField("error", err.Error()).Error("the audit log cannot be written")
	}
}

func (l *Log) write(lines []line) (err error) {
	if info, err := os.Stat(l.path); err == nil && info.Size() >= l.limit {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(io.Writer(f))
	e := json.NewEncoder(w)
	for _, entry := range lines {
		if err := e.Encode(entry); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (l *Log) rotate() error {
	for i := kept - 1; i >= 0; i-- {
		from := l.path
		if i > 0 {
			from = fmt.Sprintf("%s.%d", l.path, i)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", l.path, i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
