package logging

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// Feed is where a logger's lines go: to the output it was made with, and to whoever follows them. A follower may ask for more than the output gets, and is
// never waited for.
type Feed struct {
	logger *logrus.Logger
	out    io.Writer
	form   logrus.Formatter
	level  atomic.Uint32 // of the output

	mu        sync.Mutex
	followers map[*Follower]bool // guarded by mu
}

// NewFeed makes a logger as New does, whose lines can be followed.
func NewFeed(w io.Writer, level, formatter string) (*logrus.Logger, *Feed, error) {
	plain, err := New(io.Discard, level, formatter)
	if err != nil {
		return nil, nil, err
	}
	f := &Feed{logger: plain, out: w, form: plain.Formatter, followers: map[*Follower]bool{}}
	f.level.Store(uint32(plain.Level))
	plain.SetFormatter(nothing{})
	plain.AddHook(f)
	return plain, f, nil
}

// nothing formats for an output that nobody reads: the feed writes itself.
type nothing struct{}

func (nothing) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// Levels makes a Feed a hook of its logger.
func (f *Feed) Levels() []logrus.Level { return logrus.AllLevels }

// Fire writes one entry to all who want it.
func (f *Feed) Fire(e *logrus.Entry) error {
	var err error
	f.mu.Lock()
	defer f.mu.Unlock()
	if uint32(e.Level) <= f.level.Load() {
		var line []byte
		if line, err = f.form.Format(e); err == nil {
			_, err = f.out.Write(line)
		}
	}
	for s := range f.followers {
		if e.Level > s.level {
			continue
		}
		if line, ferr := s.form.Format(e); ferr == nil {
			s.offer(line)
		}
	}
	return err
}

// SetLevel changes what the output gets.
func (f *Feed) SetLevel(level string) error {
	lv, err := logrus.ParseLevel(strings.ToLower(level))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.level.Store(uint32(lv))
	f.adjust()
	return nil
}

// adjust lets the logger through what the output or any follower wants. f.mu is held.
func (f *Feed) adjust() {
	lv := logrus.Level(f.level.Load())
	for s := range f.followers {
		lv = max(lv, s.level)
	}
	f.logger.SetLevel(lv)
}

const (
	followed     = 512 // lines that one follower may be behind
	maxFollowers = 64
)

// ErrFollowers says that as many follow the log as may.
var ErrFollowers = errors.New("too many follow the log already")

// Follower gets the lines from its beginning on.
type Follower struct {
	feed    *Feed
	level   logrus.Level
	form    logrus.Formatter
	lines   chan []byte
	dropped atomic.Int64
}

func (s *Follower) offer(line []byte) {
	select {
	case s.lines <- line:
	default:
		s.dropped.Add(1)
	}
}

// Follow begins to follow the log at a level, as text or JSON. The Follower must be closed.
func (f *Feed) Follow(level string, json bool) (*Follower, error) {
	lv, err := logrus.ParseLevel(strings.ToLower(level))
	if err != nil {
		return nil, err
	}
	var form logrus.Formatter = &clean{&logrus.TextFormatter{TimestampFormat: timeFormat, FullTimestamp: true, DisableColors: true}}
	if json {
		form = &clean{&logrus.JSONFormatter{TimestampFormat: timeFormat}}
	}
	s := &Follower{feed: f, level: lv, form: form, lines: make(chan []byte, followed)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.followers) >= maxFollowers {
		return nil, ErrFollowers
	}
	f.followers[s] = true
	f.adjust()
	return s, nil
}

// Next is the next line. Lines that found no room are counted in dropped, once.
func (s *Follower) Next(ctx context.Context) (line []byte, dropped int64, err error) {
	select {
	case line = <-s.lines:
		return line, s.dropped.Swap(0), nil
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
}

// Close ends it.
func (s *Follower) Close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	delete(s.feed.followers, s)
	s.feed.adjust()
}
