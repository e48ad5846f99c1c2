package endpoint_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/endpoint"
)

// told is what both ends of a request have seen.
type told struct {
	method, uri, host, path, query, header, body string
	length                                       int64
	status                                       int
	answer, kind, sent                           string
}

// A handler and a client see the same over a Direct and over a connection.
func TestADirectRequestIsThatOfAConnection(t *testing.T) {
	var seen told
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seen = told{method: r.Method, uri: r.RequestURI, host: r.Host, path: r.URL.Path, query: r.URL.RawQuery, header: r.Header.Get("X-Asked"), body: string(body), length: r.ContentLength}
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("X-Told", "yes")
		switch r.URL.Path {
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		case "/refused":
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, "no")
		case "/empty":
		default:
			fmt.Fprint(w, "some")
			w.Header().Set("X-Told", "too late")
			w.WriteHeader(http.StatusTeapot) // as late
			fmt.Fprint(w, "thing")
		}
	})
	s := httptest.NewServer(h)
	defer s.Close()
	direct := &endpoint.Direct{Handler: h}
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/answered?a=b%20c", ""}, {"PUT", "/answered", "a body"}, {"POST", "/a%2Fb/c?x", "y"}, {"GET", "/nothing", ""}, {"GET", "/refused", ""},
		{"GET", "/empty", ""}, {"HEAD", "/answered", ""},
	} {
		do := func(transport http.RoundTripper) told {
			t.Helper()
			var body io.Reader
			if c.body != "" {
				body = io.MultiReader(strings.NewReader(c.body)) // of no known length
			}
			r, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Asked", "please")
			resp, err := (&http.Client{Transport: transport}).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			seen.status, seen.answer, seen.kind, seen.sent = resp.StatusCode, string(answer), resp.Header.Get("Content-Type"), resp.Header.Get("X-Told")
			return seen
		}
		if got, want := do(direct), do(s.Client().Transport); got != want {
			t.Errorf("%s %s:\n directly %+v\n connected %+v", c.method, c.path, got, want)
		}
	}
	if err := direct.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func ask(t *testing.T, ctx context.Context, d *endpoint.Direct) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://here/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return (&http.Client{Transport: d}).Do(r)
}

func TestADirectStreamIsReadAsItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := make(chan string)
		gone := make(chan error, 1)
		d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			for {
				select {
				case s := <-next:
					fmt.Fprintln(w, s)
					if err := rc.Flush(); err != nil {
						t.Error(err)
					}
				case <-r.Context().Done():
					gone <- context.Cause(r.Context())
					return
				}
			}
		})}
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "private"))
		go func() { next <- "one" }()
		resp, err := ask(t, ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for _, want := range []string{"one", "two", "three"} {
			if want != "one" {
				next <- want
			}
			if !lines.Scan() || lines.Text() != want {
				t.Fatalf("%q was read, %v", lines.Text(), lines.Err())
			}
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the handler was told %v", err)
		}
		if lines.Scan() || !errors.Is(lines.Err(), context.Canceled) {
			t.Errorf("the reader was told %v", lines.Err())
		}
		if err := d.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingOfACallersContextButItsEndGoesDirectly(t *testing.T) {
	type key struct{}
	d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Context().Value(key{}))
	})}
	resp, err := ask(t, context.WithValue(t.Context(), key{}, "private"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); string(got) != "<nil>" || err != nil {
		t.Errorf("the handler has %q of it, %v", got, err)
	}
}

// What was said before an answer was cut arrives.
func TestACutAnswerHasABeginning(t *testing.T) {
	d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "8")
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		if n, err := fmt.Fprint(w, "longer than it said"); n > 0 || !errors.Is(err, http.ErrContentLength) {
			t.Errorf("%d bytes too many were taken, %v", n, err)
		}
		panic(http.ErrAbortHandler)
	})}
	resp, err := ask(t, t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); string(got) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) || resp.ContentLength != 8 {
		t.Errorf("%q came of %d bytes, %v", got, resp.ContentLength, err)
	}
}

// An answer that ends early never looks complete, whoever ends it.
func TestACutAnswerIsAnError(t *testing.T) {
	for name, c := range map[string]func(w http.ResponseWriter){
		"aborted before it began": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"aborted": func(w http.ResponseWriter) {
			fmt.Fprint(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"shorter than it said": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "5")
			fmt.Fprint(w, "half")
		},
		"a panic":               func(http.ResponseWriter) { panic("of the handler") },
		"a panic with a status": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK); panic("of the handler") },
	} {
		d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c(w) })}
		resp, err := ask(t, t.Context(), d)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReaderThatLeavesOrSleepsEndsADirectAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		leave bool
		want  error
	}{"leaves": {true, io.ErrClosedPipe}, "sleeps": {false, os.ErrDeadlineExceeded}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan error, 1)
				wrote := 0
				d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					rc := http.NewResponseController(w)
					if err := rc.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
						t.Error(err)
					}
					for {
						n, err := w.Write(make([]byte, 64<<10))
						if wrote += n; err != nil {
							ended <- err
							return
						}
					}
				})}
				resp, err := ask(t, t.Context(), d)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if c.leave {
					_ = resp.Body.Close()
				}
				if err := <-ended; !errors.Is(err, c.want) {
					t.Errorf("its writer was told %v", err)
				}
				if wrote > 2<<20 {
					t.Errorf("%d bytes were held", wrote)
				}
				_ = resp.Body.Close()
				if err := d.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestTheEndOfADirectServerEndsItsStreamsAndIsAnErrorOfTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})}
		resp, err := ask(t, t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		d.Cut()
		if err := d.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
		_ = resp.Body.Close()
		_, err = ask(t, t.Context(), d)
		if _, network := errors.AsType[net.Error](err); !network || !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func BenchmarkDirect(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "{}")
	})
	s := httptest.NewServer(h)
	defer s.Close()
	for name, transport := range map[string]http.RoundTripper{"direct": &endpoint.Direct{Handler: h}, "connection": s.Client().Transport} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			c := &http.Client{Transport: transport}
			for b.Loop() {
				resp, err := c.Post(s.URL, "application/json", strings.NewReader("{}"))
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}

// A reader that does not read keeps an answer from growing in memory, in however large pieces it is written.
func TestADirectAnswerWaitsForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 16 << 20
		written := make(chan int, 1)
		direct := &endpoint.Direct{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			n, _ := w.Write(make([]byte, size))
			written <- n
		})}
		for _, read := range []int64{0, size / 2, size} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://here/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := direct.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.CopyN(io.Discard, resp.Body, read)
			synctest.Wait()
			if waits := len(written) == 0; got != read || err != nil || waits != (read < size) {
				t.Errorf("%d bytes were read, %v, and the handler waits: %v", got, err, waits)
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			if n := <-written; int64(n) < read || int64(n) > read+2<<20 {
				t.Errorf("it wrote %d bytes to one who read %d", n, read)
			}
		}
		if err := direct.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
