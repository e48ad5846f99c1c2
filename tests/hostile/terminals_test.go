package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/tests/platform"
)

var terminals = []attack{
	{id: "F1", what: "escape sequences that terminals obey", language: "py", program: `
os.write(1, b"\x1b]52;c;aG9zdGlsZQ==\x07\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\\x1b]0;title\x07\x1b[21t\x1bP$qm\x1b\\\x05end\n")
open("\x1b]52;c;eA==\x07name", "w")
os.execvp("\x1b[21tno-such-program", ["x"])
`, want: "exit 1", then: func(ctx context.Context, a *arena, runner string) error {
		status, body, err := a.Do(ctx, "GET", "/runners/"+runner+"/files/raw?path=%1b%5d0;x%07", nil)
		if err != nil || status != 424 || bytes.ContainsAny(body, "\x1b\x07") {
			return fmt.Errorf("an error with an escape: status %d %q, %w", status, body, err)
		}
		return a.plainLog("\x1b")
	}},
	{id: "F2", what: "HTML in output, names and errors", script: markup},
	{id: "F3", what: "lines forged by ids and paths", script: forgedLines},
	{id: "F4", what: "sizes of a terminal, absurd and all the time", script: resizes},
	{id: "F5", what: "names that run from right to left", language: "py",
		program: `open("invoice\u202egpj.exe", "w"); open("a\u2066b\u2069", "w"); open("\u200fx", "w")`, want: "exit 0",
		then: func(ctx context.Context, a *arena, runner string) error {
			status, body, err := a.Do(ctx, "GET", "/runners/"+runner+"/files?path=./", nil)
			if err != nil || status != 200 || strings.ContainsAny(string(body), "\u202e\u2066\u2069\u200f") || !strings.Contains(string(body), `\u202e`) {
				return fmt.Errorf("status %d %q, %w", status, body, err)
			}
			return nil
		}},
}

// plainLog checks that the service's log holds none of these characters.
func (a *arena) plainLog(bad string) error {
	if log := a.log.String(); strings.ContainsAny(log, bad) {
		at := strings.IndexAny(log, bad)
		return fmt.Errorf("a raw character is in the log: %q", log[max(0, at-100):min(len(log), at+100)])
	}
	return nil
}

// markup has the API repeat HTML wherever it repeats anything. No answer may be taken for a page.
func markup(ctx context.Context, a *arena, runner string) error {
	const html = `<script>alert(1)</script>`
	if err := a.Copy(ctx, runner, nil, platform.File{Path: "page.html", Content: []byte(html)}); err != nil {
		return err
	}
	for _, path := range []string{"/runners/" + url.PathEscape(html), "/runners/" + url.PathEscape(html) + "/files", "/runners/" + runner + "/files?path=" + url.QueryEscape(html),
		"/runners/" + runner + "/files?path=.%2F", "/runners/" + runner + "/files/raw?path=page.html", "/execution-environments/" + url.PathEscape(html),
		"/execution-environments?fetch=" + url.QueryEscape(html), "/" + url.PathEscape(html)} {
		req, err := http.NewRequestWithContext(ctx, "GET", a.URL+"/api/v1"+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Poseidon-Token", a.token)
		req.Header.Set("Accept", "text/html")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		kind := resp.Header.Get("Content-Type")
		attached := strings.HasPrefix(resp.Header.Get("Content-Disposition"), "attachment") // the download's type is guessed, but nothing shows it
		if strings.Contains(kind, "html") && !attached || resp.ContentLength != 0 && resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			return fmt.Errorf("%s: status %d, content type %q, options %q", path, resp.StatusCode, kind, resp.Header.Get("X-Content-Type-Options"))
		}
	}
	return nil
}

// forgedLines puts line ends where ids, paths, headers and names are logged.
func forgedLines(ctx context.Context, a *arena, runner string) error {
	const forged = "\ntime=\"2001-01-01T00:00:00Z\" level=error msg=\"forged by hand\""
	for _, path := range []string{"/runners/" + url.PathEscape("x"+forged) + "/files", "/runners/" + runner + "/files?path=" + url.QueryEscape("x"+forged),
		"/runners/" + runner + "/websocket?executionID=" + url.QueryEscape(forged), "/" + url.PathEscape(forged)} {
		if _, _, err := a.Do(ctx, "GET", path, nil); err != nil {
			return err
		}
	}
	_ = a.Copy(ctx, runner, []string{forged}, platform.File{Path: "/proc/" + forged, Content: []byte("x")})
	if _, _, err := a.Do(ctx, "PUT", "/execution-environments/17", map[string]any{"image": "x" + forged}); err != nil {
		return err
	}
	_ = a.DeleteEnvironment(ctx, 17)
	if strings.Contains(a.log.String(), "\ntime=\"2001-01-01") {
		return errors.New("the log has a line that a client wrote")
	}
	return nil
}

func resizes(ctx context.Context, a *arena, runner string) error {
	at, err := a.Execute(ctx, runner, platform.Execution{Command: "read line; stty size; exit 9", TimeLimit: 20})
	if err != nil {
		return err
	}
	d := websocket.Dialer{Subprotocols: []string{"rockpool.v1"}, HandshakeTimeout: 10 * time.Second}
	conn, _, err := d.DialContext(ctx, at, http.Header{"Poseidon-Token": {a.token}})
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	sizes := []string{`0,"height":0`, `65535,"height":65535`, `70000,"height":-1`, `1e400,"height":{}`, `80,"height":25`}
	for i := range 10_000 {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"resize","width":`+sizes[i%len(sizes)]+`}`)); err != nil {
			return err
		}
	}
	if err := conn.WriteMessage(websocket.BinaryMessage, []byte("go\n")); err != nil {
		return err
	}
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			return fmt.Errorf("without an exit: %w", err)
		}
		if bytes.Contains(data, []byte(`"type":"exit","data":9`)) {
			return nil
		}
	}
}
