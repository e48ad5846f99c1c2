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
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/api/dto"
	"rockpool/internal/shell"
)

// Options say what to run and where.
type Options struct {
	URL         string // with or without /api/v1
	Token       string
	Environment int
	Files       []string // uploaded under their base names
	Dir         string   // uploaded whole
	TimeLimit   int      // seconds, 0 = none
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
	c := &client{o: o, base: strings.TrimSuffix(strings.TrimSuffix(o.URL, "/"), "/api/v1") + "/api/v1", http: &http.Client{Transport: &http.Transport{}}}
	defer c.http.CloseIdleConnections()
	var runner dto.Runner
	request := dto.RunnerRequest{ExecutionEnvironmentID: o.Environment, InactivityTimeout: c.inactivity()}
	if err := c.call(ctx, "POST", "/runners", request, http.StatusOK, &runner); err != nil {
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
		if err := c.upload(ctx, path+"/files"); err != nil {
			return ExitError, err
		}
	}
	return c.execute(ctx, path+"/execute", s)
}

// inactivity lets a runner whose client vanished expire. The gateway does not pause it during an execution.
func (c *client) inactivity() int {
	if c.o.TimeLimit == 0 {
		return 0
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
	var told dto.ClientError
	_ = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&told) // some answers have no body
	err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, told.Message)
	if resp.StatusCode == http.StatusGone {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

// upload streams the files, one in memory at a time.
func (c *client) upload(ctx context.Context, path string) error {
	pr, pw := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := c.writeFiles(pw)
		return errors.Join(err, pw.CloseWithError(err))
	})
	g.Go(func() error {
		err := c.send(ctx, "PATCH", path, pr, http.StatusNoContent, nil)
		_ = pr.CloseWithError(io.ErrClosedPipe) // lets the writer go after an early answer
		return err
	})
	return g.Wait()
}

func (c *client) writeFiles(w io.Writer) error {
	if _, err := io.WriteString(w, `{"copy":[`); err != nil {
		return err
	}
	lead := ""
	add := func(name, from string) error {
		entry, err := json.Marshal(name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, `%s{"path":%s,"content":"`, lead, entry); err != nil {
			return err
		}
		lead = ","
		if from != "" {
			if err := encode(w, from); err != nil {
				return err
			}
		}
		_, err = io.WriteString(w, `"}`)
		return err
	}
	for _, f := range c.o.Files {
		if err := add(filepath.Base(f), f); err != nil {
			return err
		}
	}
	if c.o.Dir != "" {
		err := filepath.WalkDir(c.o.Dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(c.o.Dir, p)
			switch {
			case err != nil || name == ".":
				return err
			case d.IsDir():
				return add(filepath.ToSlash(name)+"/", "")
			case d.Type().IsRegular():
				return add(filepath.ToSlash(name), p)
			}
			return nil // links and the like have no place in the request
		})
		if err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]}")
	return err
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

func (c *client) command() string { return shell.Quote(c.o.Argv...) }
