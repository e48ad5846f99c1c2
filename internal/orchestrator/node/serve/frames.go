package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/wire"
)

const (
	frameBytes = 64 << 10
	// frameIdle is the time between signs of life.
	frameIdle = time.Second
	// followEvery is how often a file that is followed is looked at.
	followEvery = 100 * time.Millisecond
	// frameWrite bounds how long a client may take to take a frame.
	frameWrite = 40 * time.Second

	eventDeleted   = "file deleted"
	eventTruncated = "file truncated"
)

// framer writes what is read as Nomad's stream frames, or plain. Frames leave at once: nothing is held back to make them larger.
type framer struct {
	ctx   context.Context
	w     http.ResponseWriter
	rc    *http.ResponseController
	plain bool
	sent  time.Time
	buf   []byte
}

func newFramer(w http.ResponseWriter, r *http.Request, plain bool) *framer {
	kind := "application/json"
	if plain {
		kind = "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	return &framer{ctx: r.Context(), w: w, rc: http.NewResponseController(w), plain: plain, sent: time.Now(), buf: make([]byte, frameBytes)}
}

func (f *framer) frame(v wire.StreamFrame) error {
	data := v.Data
	if !f.plain {
		var err error
		if data, err = json.Marshal(v); err != nil {
			return err
		}
	}
	_ = f.rc.SetWriteDeadline(time.Now().Add(frameWrite)) // not every connection has deadlines
	if _, err := f.w.Write(data); err != nil {
		return err
	}
	f.sent = time.Now()
	return f.rc.Flush()
}

// copy sends what r still has. Offsets are those behind the data, as in Nomad.
func (f *framer) copy(r io.Reader, name string, offset *int64) error {
	for {
		n, err := r.Read(f.buf)
		if n > 0 {
			*offset += int64(n)
			if err := f.frame(wire.StreamFrame{Offset: *offset, Data: f.buf[:n], File: name}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
}

// event tells what became of a file; a plain stream has no words for it.
func (f *framer) event(name, what string, offset int64) error {
	if f.plain {
		return nil
	}
	return f.frame(wire.StreamFrame{Offset: offset, File: name, FileEvent: what})
}

// rest waits a moment for more, and gives a sign of life when nothing was said for long. It reports whether the client is still there.
func (f *framer) rest() bool {
	t := time.NewTimer(followEvery)
	defer t.Stop()
	select {
	case <-t.C:
	case <-f.ctx.Done():
		return false
	}
	if time.Since(f.sent) < frameIdle || f.plain {
		return true
	}
	return f.frame(wire.StreamFrame{}) == nil
}

type logRequest struct {
	ID     string        `path:"id"`
	Task   string        `query:"task"`
	Type   string        `query:"type"`
	Follow endpoint.Flag `query:"follow"`
	Origin string        `query:"origin"`
	Offset int64         `query:"offset"`
	Plain  endpoint.Flag `query:"plain"`
}

const logDir = "alloc/logs"

// logFile is one file of a task's log.
type logFile struct {
	index int
	size  int64
}

// logFiles lists the files of a log, oldest first.
func logFiles(root *os.Root, prefix string) ([]logFile, error) {
	dir, err := root.Open(logDir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, fileError(err, logDir)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, fileError(err, logDir)
	}
	var out []logFile
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || strconv.Itoa(n) != number {
			continue
		}
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			out = append(out, logFile{n, i.Size()})
		}
	}
	slices.SortFunc(out, func(a, b logFile) int { return a.index - b.index })
	return out, nil
}

// start is the file and the offset in it that a log is read from. An offset beyond what is kept begins with what is.
func start(files []logFile, fromEnd bool, offset int64) (index int, at int64) {
	if fromEnd {
		var total int64
		for _, f := range files {
			total += f.size
		}
		offset = max(total-offset, 0)
	}
	for i, f := range files {
		if offset <= f.size || i == len(files)-1 {
			return f.index, min(offset, f.size)
		}
		offset -= f.size
	}
	return 0, 0
}

func (h *Handler) logs(w http.ResponseWriter, r *http.Request, _ auth.Identity, req logRequest) error {
	names, err := h.node.Tasks(req.ID)
	switch {
	case err != nil:
		return err
	case req.Task == "":
		return fault.New(fault.Invalid, "must provide task name")
	case req.Type != "stdout" && req.Type != "stderr":
		return fault.New(fault.Invalid, "log type %q must be stdout or stderr", req.Type)
	case req.Origin != "" && req.Origin != "start" && req.Origin != "end":
		return fault.New(fault.Invalid, "origin %q must be start or end", req.Origin)
	case req.Offset < 0:
		return fault.New(fault.Invalid, "the offset is negative")
	case !slices.Contains(names, req.Task):
		return fault.New(fault.NotFound, "unknown task name %q", req.Task)
	}
	root, err := h.root(req.ID)
	if err != nil {
		return err
	}
	defer root.Close()
	prefix := req.Task + "." + req.Type + "."
	files, err := logFiles(root, prefix)
	if err != nil {
		return err
	}
	index, offset := start(files, req.Origin == "end", req.Offset)
	f := newFramer(w, r, bool(req.Plain))
	var open *os.File
	defer func() {
		if open != nil {
			_ = open.Close()
		}
	}()
	for {
		ended, err := h.node.Ended(req.ID, req.Task) // before reading: what is written afterwards is then not missed
		ended = ended || err != nil                  // the allocation is gone
		if files, err = logFiles(root, prefix); err != nil {
			return err
		}
		if len(files) > 0 && files[0].index > index { // what was to come next was rotated away
			index, offset = files[0].index, 0
			if open != nil {
				_ = open.Close()
				open = nil
			}
		}
		name := fmt.Sprintf("%s/%s%d", logDir, prefix, index)
		if open == nil {
			if open, err = openRegular(root, name); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
			if open != nil {
				if _, err := open.Seek(offset, io.SeekStart); err != nil {
					return err
				}
			}
		}
		if open != nil {
			if err := f.copy(open, name, &offset); err != nil {
				return err
			}
			if len(files) > 0 && files[len(files)-1].index > index { // complete: the next one exists already
				// It was complete before the next one was made, and that was seen before this one was read.
				_ = open.Close()
				open, index, offset = nil, index+1, 0
				continue
			}
		}
		if !bool(req.Follow) || ended || !f.rest() {
			return nil
		}
	}
}

type streamRequest struct {
	fsPath
	Origin string        `query:"origin"`
	Offset int64         `query:"offset"`
	Follow string        `query:"follow"` // default true
	Plain  endpoint.Flag `query:"plain"`
}

// stream follows one file, of the allocation's directory or inside a task's own file system.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, _ auth.Identity, req streamRequest) error {
	follow := true
	if req.Follow != "" {
		var err error
		if follow, err = strconv.ParseBool(req.Follow); err != nil {
			return fault.New(fault.Invalid, "follow is neither true nor false: %q", req.Follow)
		}
	}
	if req.Path == "" {
		return fault.New(fault.Invalid, "must provide a file name")
	}
	if req.Origin != "" && req.Origin != "start" && req.Origin != "end" || req.Offset < 0 {
		return fault.New(fault.Invalid, "origin must be start or end, and the offset not negative")
	}
	at, err := h.locate(r.Context(), req.ID, req.Path)
	if err != nil {
		return err
	}
	if at.files != nil {
		return streamInside(w, r, at, req, follow)
	}
	root, err := h.root(req.ID)
	if err != nil {
		return err
	}
	defer root.Close()
	file, err := openRegular(root, at.rel)
	if err != nil {
		return err
	}
	defer file.Close()
	i, err := file.Stat()
	if err != nil {
		return fileError(err, at.rel)
	}
	offset := req.Offset
	if req.Origin == "end" {
		offset = max(i.Size()-offset, 0)
	}
	f := newFramer(w, r, bool(req.Plain))
	for {
		if _, err := file.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		if err := f.copy(file, at.rel, &offset); err != nil {
			return err
		}
		if !follow || !f.rest() {
			return nil
		}
		now, err := root.Stat(at.rel)
		if err != nil || !os.SameFile(i, now) {
			if err := f.copy(file, at.rel, &offset); err != nil { // what came last
				return err
			}
			return f.event(at.rel, eventDeleted, offset)
		}
		if now.Size() < offset {
			offset = 0
			if err := f.event(at.rel, eventTruncated, offset); err != nil {
				return err
			}
		}
	}
}

// lookInside is how often a file inside a task is opened anew, to find out that it was replaced, cut off or removed. What is appended shows at once.
const lookInside = time.Second

// streamInside follows a file of a task's own file system, by descriptors of it. One whose size nobody knows, as of the kernel's, is sent once.
func streamInside(w http.ResponseWriter, r *http.Request, at place, req streamRequest, follow bool) error {
	file, size, err := openInside(r.Context(), at)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	offset := req.Offset
	if req.Origin == "end" {
		offset = max(size-offset, 0)
	}
	if err := skip(file, offset); err != nil {
		return fileError(err, at.rel)
	}
	f := newFramer(w, r, bool(req.Plain))
	looked := time.Now()
	for {
		if err := f.copy(file, at.rel, &offset); err != nil {
			return err
		}
		if !follow || size < 0 || !f.rest() {
			return nil
		}
		if time.Since(looked) < lookInside {
			continue
		}
		looked = time.Now()
		again, size, err := openInside(r.Context(), at)
		if err != nil {
			if r.Context().Err() != nil {
				return nil
			}
			if err := f.copy(file, at.rel, &offset); err != nil { // what came last
				return err
			}
			return f.event(at.rel, eventDeleted, offset)
		}
		_ = file.Close()
		file = again
		if size < offset {
			offset = 0
			if err := f.event(at.rel, eventTruncated, offset); err != nil {
				return err
			}
		}
		if err := skip(file, offset); err != nil {
			return fileError(err, at.rel)
		}
	}
}

func openInside(ctx context.Context, at place) (io.ReadCloser, int64, error) {
	f, i, err := at.files.Open(ctx, at.path, "")
	if err != nil {
		return nil, 0, fileError(err, at.rel)
	}
	return f, i.Size, nil
}

// skip goes to an offset from the start of a file. Where it ends before, there is nothing to read.
func skip(r io.Reader, offset int64) error {
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(offset, io.SeekStart)
		return err
	}
	if _, err := io.CopyN(io.Discard, r, offset); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
