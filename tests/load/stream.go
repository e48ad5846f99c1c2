package load

import (
	"bufio"
	"bytes"
	"io"
)

// longestFrame is the most that one line of an event stream may have: what thousands of allocations became in one entry of the log.
const longestFrame = 256 << 20 // bytes

// Running reads Nomad's event stream of the topic Allocation until it ends, and calls f with the id of each job whose allocation is told of as anything but pending: it
// runs, or was so short that only its end is told. f gets a job as often as the stream tells of it. The error is the stream's, nil where it just ended.
//
// The reader shares the processors with what is measured. So it looks for the two fields that it needs, each of which an event has once and in this order, and does not
// decode the rest.
func Running(stream io.Reader, f func(job string)) error {
	frames := bufio.NewScanner(stream)
	frames.Buffer(make([]byte, 1<<20), longestFrame)
	frames.Split(ended)
	for frames.Scan() {
		_, rest, more := bytes.Cut(frames.Bytes(), jobKey)
		for more {
			var event []byte
			event, rest, more = bytes.Cut(rest, jobKey)
			job, event, _ := bytes.Cut(event, quote)
			_, event, _ = bytes.Cut(event, statusKey)
			if status, _, there := bytes.Cut(event, quote); there && string(status) != "pending" {
				f(string(job))
			}
		}
	}
	return frames.Err()
}

var jobKey, statusKey, quote = []byte(`"JobID":"`), []byte(`"ClientStatus":"`), []byte(`"`)

// ended yields whole lines: what has no end is no frame.
func ended(data []byte, _ bool) (advance int, line []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}
