package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/api/openapi"
	"rockpool/internal/endpoint/endpointtest"
	"rockpool/internal/logging"
	"rockpool/internal/runner/files"
	"rockpool/tests/contract"
)

// connected serves one connection of a client until client returns. Its handlers have nothing behind them.
func connected(o Options, client func(net.Conn)) {
	ready := make(chan struct{})
	close(ready)
	a := New(o, nil, nil, nil, nil, ready, logging.Discard())
	l := endpointtest.NewListener()
	theirs := l.Dial()
	server := &http.Server{Handler: a}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	client(theirs)
	_ = theirs.Close()
	_ = server.Close()
	a.Wait()
	wg.Wait()
}

func TestASlowBodyIsRefused(t *testing.T) {
	const slow = `{"message":"the request body did not arrive within 15s and 1s more for each MiB: send it faster, or in smaller requests"}`
	for name, c := range map[string]struct {
		head   string
		piece  string
		within time.Duration
	}{
		"a byte a second":         {"Content-Length: 1000\r\n\r\n", "x", bodyTime},
		"chunks":                  {"Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", bodyTime},
		"a size that is not true": {"Content-Length: 104857600\r\n\r\n", "x", bodyTime + 100*bodyPerMiB},
		"a size beyond all":       {"Content-Length: 9000000000000000000\r\n\r\n", "x", bodyTime + 512*bodyPerMiB},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				connected(Options{Tokens: tokens(""), Watch: nobody{}}, func(conn net.Conn) {
					began := time.Now()
					done := make(chan struct{})
					var wg sync.WaitGroup
					wg.Go(func() {
						_, err := io.WriteString(conn, "POST /api/v1/runners HTTP/1.1\r\nHost: h\r\n"+c.head)
						for err == nil {
							select {
							case <-time.After(time.Second):
								_, err = io.WriteString(conn, c.piece)
							case <-done:
								return
							}
						}
					})
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatal(err)
					}
					body, _ := io.ReadAll(resp.Body)
					took := time.Since(began)
					if resp.StatusCode != 400 || string(body) != slow || took < c.within || took > c.within+2*time.Second {
						t.Errorf("after %v: %d %s", took, resp.StatusCode, body)
					}
					close(done)
					_ = conn.Close()
					wg.Wait()
				})
			})
		})
	}
}

// The deadline of one request is not that of the next one on the connection.
func TestDeadlinesEndWithTheirRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		connected(Options{Tokens: tokens("secret"), Watch: nobody{}}, func(conn net.Conn) {
			r := bufio.NewReader(conn)
			for range 5 {
				if _, err := io.WriteString(conn, "POST /api/v1/runners HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != 401 {
					t.Fatalf("got %v %v", resp, err)
				}
				time.Sleep(2 * writeTime) // of the bubble
			}
		})
	})
}

func TestAClientThatStopsReadingIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		connected(Options{Tokens: tokens(""), Watch: nobody{}}, func(conn net.Conn) {
			began := time.Now()
			if _, err := io.WriteString(conn, "GET /api/v1/rockpool/openapi.json HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(writeTime + time.Second) // of the bubble
			n, err := io.Copy(io.Discard, conn)
			if err != nil || n >= int64(len(openapi.Document)) || time.Since(began) > 2*writeTime {
				t.Errorf("after %v: %d bytes, %v", time.Since(began), n, err)
			}
		})
	})
}

func TestThereMayBeNoRelease(t *testing.T) {
	c, err := contract.New(openapi.Document, openapi.WebSocket)
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]struct {
		status int
		body   string
	}{"": {404, ""}, "v1.2": {200, `"v1.2"`}, "abc-modified": {200, `"abc-modified"`}} {
		w := httptest.NewRecorder()
		New(Options{Version: version, Tokens: tokens(""), Watch: nobody{}}, nil, nil, nil, nil, nil, logging.Discard()).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/version", nil))
		if w.Code != want.status || w.Body.String() != want.body {
			t.Errorf("%q: got %d %q", version, w.Code, w.Body)
		}
		if err := c.Response("GET", &url.URL{Path: "/api/v1/version"}, w.Code, w.Header(), w.Body.Bytes()); err != nil {
			t.Error(err)
		}
	}
}

func TestPermissionsHaveNineCharacters(t *testing.T) {
	for given, want := range map[string]string{"rwxr-xr-x": "rwxr-xr-x", "rwxr-xr-x+": "rwxr-xr-x", "rwxr-xr-x.": "rwxr-xr-x", "": "---------", "rwx": "rwx------"} {
		if got := header(files.Entry{Permissions: given}).Permissions; got != want {
			t.Errorf("%q became %q, want %q", given, got, want)
		}
	}
}

// FuzzRequests sends any path, query and body to a gateway that wants a token: no input may break it, and each answer is one of the published ones.
func FuzzRequests(f *testing.F) {
	c, err := contract.New(openapi.Document, openapi.WebSocket)
	if err != nil {
		f.Fatal(err)
	}
	a := New(Options{Tokens: tokens("secret"), Version: "v", Watch: nobody{}}, nil, nil, nil, nil, make(chan struct{}), logging.Discard()) // recovery goes on, so that /health needs no pools
	for _, r := range a.table() {
		f.Add(r.Method, strings.NewReplacer("{id:[0-9]+}", "10", "{runnerId}", "10-x").Replace(r.Path), "fetch=true&path=./&recursive=x&executionID=e", `{"a":1}`)
	}
	f.Add("GET", "/api/v1/runners/%2e%2e/files", "path=%00&path=;&%zz", "")
	f.Add("PUT", "/api/v1/execution-environments/99999999999999999999", "fetch", "{")
	f.Add("GET", "/api/v1//health", "", "")
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(fmt.Sprintf("%s %s?%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", method, path, query, len(body), body))))
		if err != nil {
			return // net/http answers it
		}
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code == 200 && w.Header().Get("Content-Type") == "application/schema+json" || w.Code == 500 {
			if w.Code == 500 {
				t.Errorf("%s %s: %d %s", method, r.URL, w.Code, w.Body)
			}
			return
		}
		if err := c.Response(r.Method, r.URL, w.Code, w.Header(), w.Body.Bytes()); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDispositions holds the header of downloads to its form: whatever the path is, there is one quoted name, and no control character.
func FuzzDispositions(f *testing.F) {
	for _, seed := range []string{"", "a.txt", `a"b\c`, "a\r\nX: y", "ä\u0085\u202e", "\xff\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := disposition(name)
		inner, ok := strings.CutPrefix(got, `attachment; filename="`)
		inner, ends := strings.CutSuffix(inner, `"`)
		plain := strings.NewReplacer(`\\`, "", `\"`, "").Replace(inner)
		if !ok || !ends || strings.ContainsAny(plain, "\"\\") || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q became %q", name, got)
		}
	})
}

// FuzzHidden holds what a listing leaves out to the plain words: a name with a dot below the listed path.
func FuzzHidden(f *testing.F) {
	for _, seed := range [][2]string{{"./", "./.a"}, {"/", "/.a/b"}, {"..", "../x"}, {".a", ".a/b"}, {"", ""}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, listed, name string) {
		if strings.ContainsAny(name, "./") || name == "" || listed == "" {
			_ = hidden(listed, name) // it must end and not panic
			return
		}
		below := strings.TrimSuffix(listed, "/") + "/"
		if hidden(listed, below+name) {
			t.Errorf("%q is hidden in %q", below+name, listed)
		}
		if !hidden(listed, below+"."+name) || !hidden(listed, below+"."+name+"/"+name) {
			t.Errorf("%q is not hidden in %q", below+"."+name, listed)
		}
	})
}
