package serve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/wire"
)

const maxDeleteLine = 1 << 20 // bytes of the line that names what is deleted

func (h *Handler) files(ctx context.Context, r taskPath) (driver.Files, error) {
	t, err := h.task(ctx, r)
	if err != nil {
		return nil, err
	}
	f := t.Files()
	if f == nil {
		return nil, taskError(driver.ErrNotSupported, r.Task)
	}
	return f, nil
}

type applyFiles struct {
	taskPath
	Body io.Reader `body:"raw"`
}

func (h *Handler) applyFiles(w http.ResponseWriter, r *http.Request, _ auth.Identity, req applyFiles) error {
	f, err := h.files(r.Context(), req.taskPath)
	if err != nil {
		return err
	}
	body := bufio.NewReader(req.Body) // contents are read past its buffer
	line, err := firstLine(body)
	if err != nil {
		return err
	}
	var head struct{ Delete []string }
	if err := json.Unmarshal(line, &head); err != nil {
		return fault.Wrap(fault.Invalid, err, "the first line is not a JSON object")
	}
	if err := f.Apply(r.Context(), head.Delete, body); err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return fault.New(fault.TooLarge, "the request body is larger than %d bytes", tooLarge.Limit)
		}
		if errors.Is(err, driver.ErrTaskGone) || errors.Is(err, driver.ErrNotSupported) {
			return taskError(err, req.Task)
		}
		return wire.Answer(http.StatusUnprocessableEntity, "%s", err.Error())
	}
	return endpoint.WriteJSON(w, r, "application/json", http.StatusOK, done{})
}

func firstLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case len(line) > maxDeleteLine:
			return nil, fault.New(fault.TooLarge, "the first line is longer than %d bytes", maxDeleteLine)
		case errors.Is(err, io.EOF) && len(line) > 0:
			return line, nil // nothing to unpack
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fault.Wrap(fault.Invalid, err, "the first line could not be read")
		}
	}
}

type listFiles struct {
	taskPath
	Path      string        `query:"path"`
	Recursive endpoint.Flag `query:"recursive"`
	User      string        `query:"user"`
}

// unreadable is the answer for a path that is missing or may not be read.
func unreadable(err error, task string) error {
	if errors.Is(err, driver.ErrTaskGone) || errors.Is(err, driver.ErrNotSupported) {
		return taskError(err, task)
	}
	return wire.Answer(http.StatusFailedDependency, "%s", err.Error())
}

// listFiles writes a line for each entry, and a last one that says that it is the last.
func (h *Handler) listFiles(w http.ResponseWriter, r *http.Request, _ auth.Identity, req listFiles) error {
	f, err := h.files(r.Context(), req.taskPath)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	begun := false
	begin := func() {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
		}
	}
	for info, err := range f.List(r.Context(), req.Path, bool(req.Recursive), req.User) {
		if err != nil {
			if begun {
				_ = out.Flush()
				return err // cuts the answer off, which tells the reader
			}
			return unreadable(err, req.Task)
		}
		begin()
		if err := enc.Encode(info); err != nil {
			return err
		}
	}
	begin()
	if _, err := out.WriteString(`{"end":true}` + "\n"); err != nil {
		return err
	}
	return out.Flush()
}

type readFile struct {
	taskPath
	Path string `query:"path"`
	User string `query:"user"`
}

func (h *Handler) readFile(w http.ResponseWriter, r *http.Request, _ auth.Identity, req readFile) error {
	f, err := h.files(r.Context(), req.taskPath)
	if err != nil {
		return err
	}
	file, info, err := f.Open(r.Context(), req.Path, req.User)
	if err != nil {
		return unreadable(err, req.Task)
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if info.Size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
		_, err = io.CopyN(w, file, info.Size) // a file that shrinks meanwhile is an error, one that grows is cut
		return err
	}
	w.WriteHeader(http.StatusOK)
	_, err = io.Copy(w, file)
	return err
}
