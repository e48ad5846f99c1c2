package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/api/dto"
	"rockpool/internal/ident"
	"rockpool/internal/shell"
)

// Options say what to run and where.
type Options struct {
	URL         string // with or without /api/v1
	Token       string
	Environment int
	Files       []string // uploaded under their base names
	Dir         string   // uploaded whole
	TimeLimit   int      // seconds, 0 = a day
	Wait        int      // seconds for a runner where none is idle
	Argv        []string
}

// Streams are the caller's.
type Streams struct {
	In       *os.File
	Out, Err io.Writer
	// Signals are passed on: an interrupt to the program, everything else ends the run.
	Signals <-chan os.Signal
}

type client struct {
	o    Options
	base string
	http *http.Client
}

// endTime bounds the removal of the runner after the end.
const endTime = 15 * time.Second

// Run runs argv and returns the exit code for the caller. An error comes with ExitError.
func Run(ctx context.Context, o Options, s Streams) (code int, err error) {
	if u, err := url.Parse(o.URL); err != nil || u.Host == "" {
		return ExitError, fmt.Errorf("--url: %q is no address of a gateway, which begins with http:// or https://", o.URL)
	}
	c := &client{o: o, base: strings.TrimSuffix(strings.TrimSuffix(o.URL, "/"), "/api/v1") + "/api/v1", http: &http.Client{Transport: &http.Transport{}}}
	defer c.http.CloseIdleConnections()
	var runner dto.Runner
	switch err := interruptible(ctx, s.Signals, func(ctx context.Context) error { return c.claim(ctx, &runner) }); {
	case errors.Is(err, errInterrupted):
		return exitInterrupted, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return ExitError, fmt.Errorf("no gateway answers at %s: start one with gateway serve, or say with --url where it is", o.URL)
	case err != nil:
		return ExitError, err
	}
	path := "/runners/" + runner.RunnerID
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
		defer cancel()
		if gone := c.call(stop, "DELETE", path, nil, http.StatusNoContent, nil); gone != nil && err == nil && !errors.Is(gone, errGone) {
			code, err = ExitError, gone
		}
	}()
	if len(o.Files) > 0 || o.Dir != "" {
		err := interruptible(ctx, s.Signals, func(ctx context.Context) error { return c.upload(ctx, path+"/files", s.Err) })
		if errors.Is(err, errInterrupted) {
			return exitInterrupted, nil
		}
		if err != nil {
			return ExitError, err
		}
	}
	return c.execute(ctx, path+"/execute", s)
}

// claimTries is how often a claim is sent whose answer does not come.
const claimTries = 3

// claim asks for a runner and waits for one to start. Its key lets it be sent again when the connection breaks before the answer has come: the runner is the same.
func (c *client) claim(ctx context.Context, out *dto.Runner) error {
	in := dto.RunnerRequest{ExecutionEnvironmentID: c.o.Environment, InactivityTimeout: c.inactivity(), WaitTimeout: &c.o.Wait}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	key := ident.New()
	for try := 1; ; try++ {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/runners", bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Idempotency-Key", key)
		err = c.do(r, http.StatusOK, out)
		if _, broken := errors.AsType[*url.Error](err); !broken || errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() != nil || try == claimTries {
			return err
		}
	}
}

var errInterrupted = errors.New("interrupted")

const exitInterrupted = 128 + int(syscall.SIGINT)

// interruptible runs what comes before the program: an interrupt has nobody else to go to and breaks it off.
func interruptible(ctx context.Context, signals <-chan os.Signal, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				if sig == os.Interrupt {
					cancel(errInterrupted)
				}
			}
		}
	})
	err := f(ctx)
	close(done)
	wg.Wait()
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return err
}

// unlimited is how many seconds a run without a time limit may take after all.
const unlimited = 24 * 60 * 60

// inactivity lets a runner whose client vanished expire. The gateway does not pause it during an execution.
func (c *client) inactivity() int {
	if c.o.TimeLimit == 0 {
		return unlimited
	}
	return c.o.TimeLimit + 60
}

var errGone = errors.New("the runner is gone")

// call sends a JSON request.
func (c *client) call(ctx context.Context, method, path string, in any, want int, out any) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.send(ctx, method, path, bytes.NewReader(data), want, out)
}

func (c *client) send(ctx context.Context, method, path string, body io.Reader, want int, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	return c.do(r, want, out)
}

// do sends a request with the token.
func (c *client) do(r *http.Request, want int, out any) error {
	r.Header.Set("Poseidon-Token", c.o.Token)
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == want {
		if out == nil {
			return nil
		}
		return json.NewDecoder(resp.Body).Decode(out)
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what is there of it says more than that it was cut off
	err = fmt.Errorf("%s %s: %s", r.Method, strings.TrimPrefix(r.URL.Path, "/api/v1"), told(resp, body))
	if resp.StatusCode == http.StatusGone {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

// upload streams the files. What has no place in the request is named on notes.
func (c *client) upload(ctx context.Context, path string, notes io.Writer) error {
	pr, pw := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := c.writeFiles(pw, notes)
		return errors.Join(err, pw.CloseWithError(err))
	})
	g.Go(func() error {
		err := c.send(ctx, "PATCH", path, pr, http.StatusNoContent, nil)
		_ = pr.CloseWithError(io.ErrClosedPipe) // lets the writer go after an early answer
		return err
	})
	return g.Wait()
}

// request writes the elements of an upload as they come.
type request struct {
	io.Writer
	lead string
}

// add writes one element: the file from, or a directory when from is empty.
func (r *request) add(name, from string) error {
	path, err := json.Marshal(name)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(r, `%s{"path":%s,"content":"`, r.lead, path); err != nil {
		return err
	}
	r.lead = ","
	if from != "" {
		if err := encode(r, from); err != nil {
			return err
		}
	}
	_, err = io.WriteString(r, `"}`)
	return err
}

func (c *client) writeFiles(w io.Writer, notes io.Writer) error {
	if _, err := io.WriteString(w, `{"copy":[`); err != nil {
		return err
	}
	r := &request{Writer: w}
	for _, f := range c.o.Files {
		switch info, err := os.Stat(f); {
		case err != nil:
			return fmt.Errorf("--file: %w", err)
		case !info.Mode().IsRegular():
			return fmt.Errorf("--file: %s is not a regular file; a directory is uploaded with --dir", f)
		}
		if err := r.add(filepath.Base(f), f); err != nil {
			return err
		}
	}
	if c.o.Dir != "" {
		if err := r.addTree(c.o.Dir, notes); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]}")
	return err
}

// addTree adds what is below root. A link to a file is uploaded as that file, for links themselves have no place in the request.
func (r *request) addTree(root string, notes io.Writer) error {
	root = filepath.Clean(root) + string(filepath.Separator) // a link named by the caller is followed
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
		name, err := filepath.Rel(root, p)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			return r.add(filepath.ToSlash(name)+"/", "")
		}
		if info, err := os.Stat(p); err != nil || !info.Mode().IsRegular() {
			_, err = fmt.Fprintf(notes, "gateway: %s is left out: it is neither a file nor a directory\n", p)
			return err
		}
		return r.add(filepath.ToSlash(name), p)
	})
}

func encode(w io.Writer, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	e := base64.NewEncoder(base64.StdEncoding, w)
	_, err = io.Copy(e, f)
	return errors.Join(err, e.Close())
}

func (c *client) command() (string, error) { return shell.Quote(c.o.Argv...) }
