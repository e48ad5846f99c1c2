package nomad

import (
	"bytes"
	"cmp"
	"io"
	"strconv"
	"strings"
)

// maxRecord bounds what a record may say.
const maxRecord = 512

// proof lets a stream through up to the record that its script ends it with, which shows that nothing of it was cut off. Nothing of the records is
// passed on, nor what comes before the first or after the last one. See scripts/run.sh for their form. It has one writer; what it found is read after over was closed
// or when that one has ended.
type proof struct {
	mark   []byte
	to     io.Writer
	opened bool // what comes is the program's
	begun  chan struct{}

	held   []byte // the beginning of what may become a record
	inside bool   // held is a record that is not complete
	noise  []byte // what came before the program began, which is somebody's complaint
	end    string // the last record
	over   chan struct{}
}

// newProof expects a record "begin" first, if begins.
func newProof(mark string, to io.Writer, begins bool) *proof {
	return &proof{mark: []byte("\x1e" + mark + ":"), to: to, opened: !begins, begun: make(chan struct{}), over: make(chan struct{})}
}

func (p *proof) Write(b []byte) (int, error) {
	if p.end != "" {
		return len(b), nil
	}
	data := b
	if len(p.held) > 0 {
		data = append(p.held, b...)
		p.held = nil
	}
	for len(data) > 0 && p.end == "" {
		if p.inside {
			i := bytes.IndexByte(data, ';')
			if i < 0 && len(data) <= maxRecord {
				p.held = data
				break
			}
			p.inside = false
			if i < 0 || i > maxRecord { // none of ours is so long
				if err := p.pass(data); err != nil {
					return 0, err
				}
				break
			}
			p.record(string(data[:i]))
			data = data[i+1:]
			continue
		}
		i := bytes.Index(data, p.mark)
		whole := i >= 0
		if !whole {
			i = len(data) - beginning(data, p.mark)
		}
		if err := p.pass(data[:i]); err != nil {
			return 0, err
		}
		if data = data[i:]; !whole {
			p.held = bytes.Clone(data)
			break
		}
		p.inside, data = true, bytes.Clone(data[len(p.mark):])
	}
	return len(b), nil
}

// beginning is how many of the last bytes of data may be the first of mark.
func beginning(data, mark []byte) int {
	for n := min(len(data), len(mark)-1); n > 0; n-- {
		if bytes.HasPrefix(mark, data[len(data)-n:]) {
			return n
		}
	}
	return 0
}

func (p *proof) record(text string) {
	if text == "begin" {
		if !p.opened {
			p.opened = true
			close(p.begun)
		}
		return
	}
	p.end = cmp.Or(text, "nothing") // ours all say something; a forged one is the last too
	close(p.over)
}

// pass hands on what is the program's.
func (p *proof) pass(b []byte) error {
	switch {
	case len(b) == 0:
		return nil
	case !p.opened:
		p.noise = append(p.noise, b[:min(len(b), max(0, maxRecord-len(p.noise)))]...)
		return nil
	}
	_, err := p.to.Write(b)
	return err
}

// flush hands on what was held back: the stream has ended without a record.
func (p *proof) flush() error {
	if p.end != "" || p.inside {
		return nil
	}
	held := p.held
	p.held = nil
	return p.pass(held)
}

// state is the last record, "" if there was none, and whether the program began.
func (p *proof) state() (end string, began bool) {
	return p.end, p.opened
}

// complaint is what was said instead of beginning.
func (p *proof) complaint() string {
	return strings.TrimSpace(strings.ToValidUTF8(string(p.noise), "?"))
}

// exitOf reads a record of an exit.
func exitOf(record string) (code int, ok bool) {
	text, ok := strings.CutPrefix(record, "exit:")
	if !ok {
		return 0, false
	}
	code, err := strconv.Atoi(text)
	return code, err == nil && code >= 0 && code <= 255
}
