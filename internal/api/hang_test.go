package api

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
)

// hangingNode is the files of a node that may hang. moves is how many pieces of a download come before it does.
type hangingNode struct {
	moves int
	pause time.Duration // before each piece
	fail  error         // at once, instead of hanging
}

func (n *hangingNode) hang(ctx context.Context) error {
	if n.fail != nil {
		return n.fail
	}
	<-ctx.Done()
	return ctx.Err()
}

func (n *hangingNode) Apply(ctx context.Context, _ execution.Place, _ []string, _ io.Reader) error {
	return n.hang(ctx)
}

func (n *hangingNode) List(ctx context.Context, _ execution.Place, _ string, _, _ bool) iter.Seq2[files.Entry, error] {
	return func(yield func(files.Entry, error) bool) {
		for range n.moves {
			if !yield(files.Entry{Name: "a", Type: "-"}, nil) {
				return
			}
		}
		yield(files.Entry{}, n.hang(ctx))
	}
}

func (n *hangingNode) Open(ctx context.Context, _ execution.Place, _ string, _ bool) (io.ReadCloser, int64, error) {
	if n.moves == 0 {
		return nil, 0, n.hang(ctx)
	}
	return &hangingFile{ctx, n, 0}, int64(n.moves) + 1, nil
}

type hangingFile struct {
	ctx  context.Context
	node *hangingNode
	read int
}

func (f *hangingFile) Read(p []byte) (int, error) {
	if f.read == f.node.moves {
		return 0, f.node.hang(f.ctx)
	}
	select {
	case <-time.After(f.node.pause):
	case <-f.ctx.Done():
		return 0, f.ctx.Err()
	}
	f.read++
	p[0] = 'x'
	return 1, nil
}

func (f *hangingFile) Close() error { return nil }

// serveRunner answers one request for a runner's files on a node, and reports how long it took and whether the answer was cut off.
func serveRunner(ctx context.Context, n *hangingNode, method, path, body string) (w *httptest.ResponseRecorder, took time.Duration, cut bool) {
	a := &API{files: n, opts: Options{Tokens: tokens(""), Watch: nobody{}}}
	server := endpoint.NewServer(a.table(), endpoint.Options{
		Auth: auth.Func(a.authenticate), Error: writeError,
		Lookup: func(r *http.Request, _ endpoint.Route, _ auth.Identity) (context.Context, error) {
			return context.WithValue(r.Context(), runnerKey{}, &runner.Runner{ID: "10-x"}), nil
		},
	})
	w = httptest.NewRecorder()
	began := time.Now()
	defer func() {
		took = time.Since(began)
		if p := recover(); p != nil {
			cut = p == http.ErrAbortHandler //nolint:errorlint // as net/http compares it
		}
	}()
	server.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, "/api/v1/runners/10-x"+path, strings.NewReader(body)))
	return w, took, cut
}

// A node that does not answer is given up after a time, and the client is told what to do; an answer that was begun is cut off, never ended.
func TestANodeThatHangsIsGivenUp(t *testing.T) {
	const slow = `{"message":"the runner's node does not answer in time: try again, or take another runner","errorCode":"NOMAD_UNREACHABLE"}`
	for name, c := range map[string]struct {
		node         hangingNode
		method, path string
		after        time.Duration
		cut          bool
	}{
		"writing":              {hangingNode{}, "PATCH", "/files", applyTime, false},
		"listing":              {hangingNode{}, "GET", "/files", time.Minute, false},
		"a listing, later":     {hangingNode{moves: 3}, "GET", "/files", time.Minute, true},
		"a download":           {hangingNode{}, "GET", "/files/raw?path=a", stallTime, false},
		"a download, later":    {hangingNode{moves: 3}, "GET", "/files/raw?path=a", stallTime, true},
		"a download that goes": {hangingNode{moves: 10, pause: stallTime / 2}, "GET", "/files/raw?path=a", 6 * stallTime, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, took, cut := serveRunner(t.Context(), &c.node, c.method, c.path, `{}`)
				if took != c.after || cut != c.cut || !c.cut && (w.Code != 500 || w.Body.String() != slow) {
					t.Errorf("after %v, cut off: %v: %d %s", took, cut, w.Code, w.Body)
				}
			})
		})
	}
}

func TestWhatANodeSaysOfFilesIsPassedOn(t *testing.T) {
	const unreadableText = `{"message":"file not found or insufficient permissions"}`
	for name, c := range map[string]struct {
		err          error
		method, path string
		status       int
		body         string
	}{
		"a full disk":             {fault.New(fault.Unprocessable, "a: Cannot write: No space left on device"), "PATCH", "/files", 500, `{"message":"file copy failed: stderr output 'a: Cannot write: No space left on device' and stdout output ''","errorCode":"UNKNOWN"}`},
		"a node that is gone":     {fault.New(fault.Unavailable, "the cluster cannot be reached"), "PATCH", "/files", 500, `{"message":"the cluster cannot be reached","errorCode":"NOMAD_UNREACHABLE"}`},
		"a node that is down":     {fault.Wrap(fault.Unavailable, files.ErrNodeDown, "the runner's node cannot be reached"), "PATCH", "/files", 500, `{"message":"the runner's node cannot be reached","errorCode":"NOMAD_INTERNAL_SERVER_ERROR"}`},
		"a list of one":           {fault.Wrap(fault.Unavailable, files.ErrNodeDown, "the runner's node cannot be reached"), "GET", "/files", 500, `{"message":"the runner's node cannot be reached","errorCode":"NOMAD_UNREACHABLE"}`},
		"an allocation gone":      {fault.New(fault.NotFound, "unknown allocation"), "PATCH", "/files", 410, `{"message":"the runner 10-x is gone"}`},
		"an error of its own":     {errors.New("secret"), "PATCH", "/files", 500, `{"message":"an internal error occurred","errorCode":"UNKNOWN"}`},
		"a listing, gone":         {fault.New(fault.Unavailable, "the cluster cannot be reached"), "GET", "/files", 500, `{"message":"the cluster cannot be reached","errorCode":"NOMAD_UNREACHABLE"}`},
		"a listing, missing":      {fault.New(fault.NotFound, "no"), "GET", "/files?path=b", 424, unreadableText},
		"a listing, an error":     {errors.New("secret"), "GET", "/files", 500, `{"message":"an internal error occurred","errorCode":"UNKNOWN"}`},
		"a download, gone":        {fault.New(fault.Unavailable, "the cluster cannot be reached"), "GET", "/files/raw?path=a", 500, `{"message":"the cluster cannot be reached","errorCode":"NOMAD_UNREACHABLE"}`},
		"a download, missing":     {fault.New(fault.NotFound, "no"), "GET", "/files/raw?path=a", 424, unreadableText},
		"a download, an error":    {errors.New("secret"), "GET", "/files/raw?path=a", 500, `{"message":"an internal error occurred","errorCode":"UNKNOWN"}`},
		"a node that is too busy": {fault.New(fault.Exhausted, "too many requests"), "GET", "/files", 500, `{"message":"too many requests","errorCode":"NOMAD_OVERLOAD"}`},
	} {
		w, _, cut := serveRunner(t.Context(), &hangingNode{fail: c.err}, c.method, c.path, `{}`)
		if cut || w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
}

func TestAClientThatLeavesEndsItsCopy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w, _, _ := serveRunner(ctx, &hangingNode{}, "PATCH", "/files", `{"copy":[{"path":"a"}]}`); w.Code != 500 {
		t.Errorf("got %d %s: never 204", w.Code, w.Body)
	}
}
