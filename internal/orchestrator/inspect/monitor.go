package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
)

// MonitorRequest is which lines of a log are wanted, and how.
type MonitorRequest struct {
	Level    string `query:"log_level"`
	JSON     bool   `query:"log_json"`
	Plain    bool   `query:"plain"`
	Location bool   `query:"log_include_location"`
}

const (
	monitorIdle  = time.Second      // between signs of life
	monitorBound = 40 * time.Second // for a reader to take a line
)

var errIdle = errors.New("nothing was logged")

// Monitor streams the process's log until ctx ends: lines as they are, or in frames.
func (p *Process) Monitor(ctx context.Context, w http.ResponseWriter, req MonitorRequest) error {
	if p.Log == nil {
		return fault.New(fault.Unsupported, "the log of this process cannot be followed")
	}
	if req.Level == "" {
		req.Level = "info"
	}
	f, err := p.Log.Follow(req.Level, req.JSON)
	switch {
	case errors.Is(err, logging.ErrFollowers):
		return fault.New(fault.Exhausted, "%s", err.Error())
	case err != nil:
		return fault.New(fault.Invalid, "Unknown log level: %s", req.Level)
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/json")
	if req.Plain {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return pump(ctx, w, f, req.Plain)
}

// logFrame is one piece of the log on the wire.
type logFrame struct {
	Data []byte `json:",omitempty"`
}

// pump writes lines of the log until ctx or the reader ends. Between lines it shows signs of life, which plain text has not.
func pump(ctx context.Context, w http.ResponseWriter, f *logging.Follower, plain bool) error {
	rc := http.NewResponseController(w)
	send := func(data []byte) error {
		_ = rc.SetWriteDeadline(time.Now().Add(monitorBound))
		switch {
		case !plain:
			frame, err := json.Marshal(logFrame{data})
			if err != nil {
				return err
			}
			data = append(frame, '\n')
		case len(data) == 0:
			return rc.Flush()
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		return rc.Flush()
	}
	if send(nil) != nil { // so that the headers are out before the first line
		return nil
	}
	for {
		idle, cancel := context.WithTimeoutCause(ctx, monitorIdle, errIdle)
		line, missed, err := f.Next(idle)
		cancel()
		if missed > 0 {
			line = fmt.Appendf(nil, "[%d lines are left out: the reader was too slow]\n%s", missed, line)
		}
		switch {
		case errors.Is(err, errIdle):
		case err != nil:
			return nil //nolint:nilerr // the reader or the server ends
		}
		if send(line) != nil {
			return nil // the reader is gone
		}
	}
}
