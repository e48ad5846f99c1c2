package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"rockpool/internal/logging"
)

// logFrame is one piece of the log on the wire.
type logFrame struct {
	Data []byte `json:",omitempty"`
}

// pump writes lines of the log until ctx or the reader ends. Between lines it shows signs of life, which plain text has not.
func pump(ctx context.Context, w http.ResponseWriter, f *logging.Follower, plain bool) error {
	rc := http.NewResponseController(w)
	send := func(data []byte) error {
		_ = rc.SetWriteDeadline(time.Now().Add(streamBound))
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
