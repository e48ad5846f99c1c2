// Package influx writes points to an InfluxDB of version 2, off the path of whoever measures.
//
// [Writer.Point] never waits: a point is encoded into a buffer that one goroutine empties. The buffer is bounded in points and bytes; while InfluxDB is gone, slow
// or refusing, the oldest points make room for new ones. What becomes of each point is counted.
package influx

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	influxdb2 "github.com/influxdata/influxdb-client-go/v2"
	"github.com/influxdata/influxdb-client-go/v2/api"
	influxhttp "github.com/influxdata/influxdb-client-go/v2/api/http"
	"github.com/influxdata/influxdb-client-go/v2/api/write"

	"rockpool/internal/logging"
)

// How points are kept and sent.
const (
	MaxPoints = 100_000          // that wait
	MaxBytes  = 32 << 20         // that they take in line protocol
	batchSize = 5000             // points in one request
	flushTime = time.Second      // that a point waits for others
	retryTime = 5 * time.Second  // between two tries of a batch
	maxTries  = 51               // the first and 50 more
	expiry    = 10 * time.Minute // after which a batch is given up
	callTime  = 10 * time.Second // for one request
	maxRetry  = time.Minute      // at most, when InfluxDB says how long to wait
	lastTime  = 3 * time.Second  // for what is left at the end
	repeat    = 5 * time.Minute  // between two words in the log about the same trouble
)

// What becomes of points.
const (
	Written = "written"
	Dropped = "dropped" // there was no room
	Expired = "expired" // tried for too long
	Refused = "refused" // InfluxDB does not want them
)

// Options say where points go.
type Options struct {
	URL, Token, Organization, Bucket string
	Stage                            string // tag of every point
	// Count is told what becomes of points.
	Count func(result string, n int)
	Log   logging.Logger
}

type batch struct {
	lines strings.Builder
	n     int
	begun time.Time
	tries int
}

// Writer takes points. It is safe for concurrent use.
type Writer struct {
	o    Options
	full chan struct{} // a batch is full

	mu     sync.Mutex
	queue  []*batch // guarded by mu; the last one is being filled
	points int      // guarded by mu; in the queue
	bytes  int      // guarded by mu
}

// New makes a writer; nothing is sent before Run.
func New(o Options) *Writer { return &Writer{o: o, full: make(chan struct{}, 1)} }

// Tags and Fields of a point.
type (
	Tags   = map[string]string
	Fields = map[string]any
)

// Point takes a point. Tags without a value are left out, as line protocol has no empty ones. It never blocks.
func (w *Writer) Point(measurement string, tags Tags, fields Fields, at time.Time) {
	all := Tags{}
	for k, v := range tags {
		if v != "" {
			all[k] = clean(v)
		}
	}
	if w.o.Stage != "" {
		all["stage"] = w.o.Stage
	}
	line := write.PointToLineProtocol(write.NewPoint(measurement, all, fields, at), time.Nanosecond)
	dropped := 0
	w.mu.Lock()
	if len(w.queue) == 0 || w.queue[len(w.queue)-1].n >= batchSize {
		w.queue = append(w.queue, &batch{begun: at})
	}
	b := w.queue[len(w.queue)-1]
	b.lines.WriteString(line)
	b.n++
	w.points++
	w.bytes += len(line)
	for (w.points > MaxPoints || w.bytes > MaxBytes) && len(w.queue) > 0 {
		dropped += w.shift().n
	}
	isFull := b.n >= batchSize
	w.mu.Unlock()
	if dropped > 0 {
		w.o.Count(Dropped, dropped)
	}
	if isFull {
		select {
		case w.full <- struct{}{}:
		default:
		}
	}
}

// clean keeps a value from ending its line.
var clean = strings.NewReplacer("\n", " ", "\r", " ").Replace

// shift takes the oldest batch out. The lock is held.
func (w *Writer) shift() *batch {
	b := w.queue[0]
	w.queue[0] = nil
	w.queue = w.queue[1:]
	w.points -= b.n
	w.bytes -= b.lines.Len()
	return b
}

// next is the oldest batch; nil = there is none.
func (w *Writer) next() *batch {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil
	}
	return w.shift()
}

// back puts a batch that could not be written where it was, unless there is no room any more.
func (w *Writer) back(b *batch) {
	w.mu.Lock()
	room := w.points+b.n <= MaxPoints && w.bytes+b.lines.Len() <= MaxBytes
	if room {
		w.queue = append([]*batch{b}, w.queue...)
		w.points += b.n
		w.bytes += b.lines.Len()
	}
	w.mu.Unlock()
	if !room {
		w.o.Count(Dropped, b.n)
	}
}

// Run writes until ctx ends, and then once more what is left.
func (w *Writer) Run(ctx context.Context) error {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}
	defer transport.CloseIdleConnections()
	opts := influxdb2.DefaultOptions().SetHTTPClient(&http.Client{Transport: transport}).SetUseGZip(true).SetLogLevel(0)
	client := influxdb2.NewClientWithOptions(w.o.URL, w.o.Token, opts)
	defer client.Close()
	to := client.WriteAPIBlocking(w.o.Organization, w.o.Bucket)
	var told time.Time
	wait := flushTime
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			w.last(ctx, to)
			return nil
		case <-t.C:
		case <-woken(w.full, wait):
			t.Stop()
		}
		wait = flushTime
		for b := w.next(); b != nil; b = w.next() {
			again, err := w.send(ctx, to, b)
			if err != nil && time.Since(told) > repeat {
				told = time.Now()
				w.o.Log.WithField("error", err.Error()).Warn("points could not be written to InfluxDB")
			}
			if again > 0 {
				wait = again
				break
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
}

// woken lets a full batch end the wait for more points, but not the one before a new try.
func woken(full <-chan struct{}, wait time.Duration) <-chan struct{} {
	if wait > flushTime {
		return nil
	}
	return full
}

// send writes a batch. It returns after how long to try again; 0 = the batch is settled.
func (w *Writer) send(ctx context.Context, to api.WriteAPIBlocking, b *batch) (again time.Duration, err error) {
	b.tries++
	callCtx, cancel := context.WithTimeout(ctx, callTime)
	err = to.WriteRecord(callCtx, b.lines.String())
	cancel()
	answer, answered := errors.AsType[*influxhttp.Error](err)
	switch {
	case err == nil:
		w.o.Count(Written, b.n)
		return 0, nil
	case ctx.Err() != nil:
		w.back(b)
		return 0, nil
	case answered && answer.StatusCode >= 400 && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode != http.StatusRequestTimeout:
		w.o.Count(Refused, b.n)
		return 0, err
	case b.tries >= maxTries || time.Since(b.begun) >= expiry:
		w.o.Count(Expired, b.n)
		return retryTime, err
	}
	w.back(b)
	again = retryTime
	if answered && answer.RetryAfter > 0 {
		again = min(max(retryTime, time.Duration(answer.RetryAfter)*time.Second), maxRetry)
	}
	return again, err
}

// last tries once to write what is left.
func (w *Writer) last(ctx context.Context, to api.WriteAPIBlocking) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	for b := w.next(); b != nil; b = w.next() {
		if err := to.WriteRecord(ctx, b.lines.String()); err != nil {
			w.o.Count(Dropped, b.n)
			continue
		}
		w.o.Count(Written, b.n)
	}
}
