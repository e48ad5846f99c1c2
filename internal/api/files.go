package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"rockpool/internal/api/dto"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
)

type updateRequest struct {
	ID   string    `path:"runnerId"`
	Body io.Reader `body:"raw"`
}

func (a *API) updateFiles(w http.ResponseWriter, r *http.Request, _ auth.Identity, q updateRequest) error {
	run := runnerOf(r.Context())
	run.Touch()
	ctx, unbind := run.Bind(r.Context())
	defer unbind()
	modified := time.Unix(0, 0)
	if a.opts.CopyModificationTime {
		modified = time.Now()
	}
	update, err := files.Read(q.Body, modified, a.opts.Uploads)
	if fault.Is(err, fault.Exhausted) {
		a.opts.Watch.Refused("uploads")
		return &answered{error: err, status: http.StatusInternalServerError, code: dto.CodeOverload, retryAfter: uploadAgain} // a 503 the platform does not know here
	}
	if err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			err = fault.New(fault.Invalid, "the request body is larger than %d bytes", tooLarge.Limit)
		}
		return err
	}
	defer update.Close()
	archive, err := update.Archive()
	if err == nil {
		err = a.apply(ctx, run, update, archive)
	}
	switch {
	case err == nil && ctx.Err() == nil:
		w.WriteHeader(http.StatusNoContent)
		return nil
	case fault.Is(err, fault.Unprocessable):
		err = fault.Wrap(fault.Unprocessable, err, "file copy failed: stderr output '%s' and stdout output ''", fault.Public(err))
		return coded(err, dto.CodeUnknown)
	}
	if err = ofRunner(ctx, run, err); fault.Is(err, fault.Unavailable) && errors.Is(err, files.ErrNodeDown) {
		err = coded(err, dto.CodeInternal)
	}
	return err
}

// uploadAgain is when to come again with an upload for which there was no room.
const uploadAgain = 5 * time.Second

// Times of the cluster.
const (
	applyTime   = time.Minute // to write the files of a request
	applyPerMiB = time.Second // and in addition for each MiB of them
	stallTime   = time.Minute // to begin a download, and to go on with it
)

// errSlow is the cause of what ends because the cluster does not get on with it.
var errSlow = fault.New(fault.Unavailable, "the runner's node does not answer in time: try again, or take another runner")

func (a *API) apply(ctx context.Context, run *runner.Runner, update *files.Update, archive io.Reader) error {
	ctx, cancel := context.WithTimeoutCause(ctx, applyTime+time.Duration(update.Size()>>20)*applyPerMiB, errSlow)
	defer cancel()
	if err := a.files.Apply(ctx, run.Place(), update.Deletes, archive); err != nil {
		return late(ctx, err)
	}
	return context.Cause(ctx)
}

// late puts the reason first where a call failed because its time was over.
func late(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSlow) || errors.Is(cause, context.DeadlineExceeded) {
		return fault.Wrap(fault.Unavailable, errors.Join(cause, err), "%s", fault.Public(errSlow))
	}
	return err
}

// ofRunner says of a call that failed whether its runner ended meanwhile.
func ofRunner(ctx context.Context, run *runner.Runner, err error) error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil, errors.Is(cause, errSlow), errors.Is(cause, context.DeadlineExceeded):
		err = late(ctx, err)
		if fault.Is(err, fault.NotFound) { // its allocation, the path was answered before
			return fault.Wrap(fault.Gone, err, "the runner %s is gone", run.ID)
		}
		return err
	case errors.Is(cause, execution.ErrDeleted), errors.Is(cause, execution.ErrInactive):
		return fault.Wrap(fault.Gone, errors.Join(cause, err), "the runner %s is gone", run.ID)
	}
	return fault.Wrap(fault.Internal, errors.Join(cause, err), "the request was aborted: the runner ended or the client left")
}

type listRequest struct {
	ID         string `path:"runnerId"`
	Path       string `query:"path"`
	Recursive  string `query:"recursive"`
	Privileged string `query:"privilegedExecution"`
}

func (a *API) listFiles(w http.ResponseWriter, r *http.Request, _ auth.Identity, q listRequest) error {
	if q.Path == "" {
		q.Path = "./"
	}
	recursive, err := strconv.ParseBool(q.Recursive)
	recursive = recursive || err != nil
	privileged, _ := strconv.ParseBool(q.Privileged)
	run := runnerOf(r.Context())
	run.Touch()
	ctx, unbind := run.Bind(r.Context())
	defer unbind()

	started := false
	for entry, err := range a.files.List(ctx, run.Place(), q.Path, recursive, privileged) {
		if err != nil {
			if !started && fault.Is(err, fault.NotFound) {
				return unreadable(err)
			}
			return ofRunner(ctx, run, err)
		}
		if hidden(q.Path, entry.Name) {
			continue
		}
		data, err := json.Marshal(header(entry))
		if err != nil {
			return err
		}
		lead := ","
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/json")
			lead = `{"files":[`
		}
		if _, err := io.WriteString(w, lead+directions.Replace(string(data))); err != nil {
			return err
		}
	}
	if !started {
		return endpoint.WriteJSON(w, r, "application/json", http.StatusOK, json.RawMessage(`{"files":[]}`))
	}
	_, err = io.WriteString(w, "]}")
	return err
}

// directions escapes what turns text around: a name must not look like another one where a listing is shown as it came.
var directions = func() *strings.Replacer {
	var pairs []string
	for _, r := range []rune{0x061c, 0x200e, 0x200f, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068, 0x2069} {
		pairs = append(pairs, string(r), fmt.Sprintf(`\u%04x`, r))
	}
	return strings.NewReplacer(pairs...)
}()

func header(e files.Entry) dto.FileHeader {
	return dto.FileHeader{
		Name: e.Name, EntryType: e.Type, LinkTarget: e.LinkTarget, Size: e.Size, ModificationTime: e.ModTime,
		Permissions: (e.Permissions + "---------")[:9], Owner: e.Owner, Group: e.Group,
	}
}

// hidden reports whether an entry lies behind a name with a dot below the listed path. What the path itself says is no secret.
func hidden(listed, name string) bool {
	rest, base := path.Clean(name), path.Clean(listed)
	if rest == base {
		return false
	}
	if base != "." {
		rest = strings.TrimPrefix(rest, strings.TrimSuffix(base, "/")+"/")
	}
	for part := range strings.SplitSeq(rest, "/") {
		if strings.HasPrefix(part, ".") && part != "." && part != ".." {
			return true
		}
	}
	return false
}

type downloadRequest struct {
	ID         string `path:"runnerId"`
	Path       string `query:"path"`
	Privileged string `query:"privilegedExecution"`
}

// disposition leaves control characters out and escapes what would end the quoted name.
func disposition(name string) string {
	var b strings.Builder
	for _, c := range name {
		switch {
		case unicode.IsControl(c):
		case c == '"' || c == '\\':
			b.WriteRune('\\')
			fallthrough
		default:
			b.WriteRune(c)
		}
	}
	return `attachment; filename="` + b.String() + `"`
}

func (a *API) downloadFile(w http.ResponseWriter, r *http.Request, _ auth.Identity, q downloadRequest) error {
	w.Header().Set("Content-Disposition", disposition(q.Path))
	privileged, _ := strconv.ParseBool(q.Privileged)
	run := runnerOf(r.Context())
	run.Touch()
	ctx, unbind := run.Bind(r.Context())
	defer unbind()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTime, func() { cancel(errSlow) })
	defer stalled.Stop()
	if q.Path == "" {
		return unreadable(fault.New(fault.NotFound, "no path"))
	}
	file, size, err := a.files.Open(ctx, run.Place(), q.Path, privileged)
	if fault.Is(err, fault.NotFound) {
		return unreadable(err)
	}
	if err != nil {
		return ofRunner(ctx, run, err)
	}
	defer file.Close()
	if size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	n, err := io.Copy(w, moving{file, func() { stalled.Reset(stallTime) }})
	if err == nil && size >= 0 && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		panic(http.ErrAbortHandler) // never a short 200
	}
	return nil
}

// moving tells of every read.
type moving struct {
	io.Reader
	moved func()
}

func (m moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.moved()
	return n, err
}
