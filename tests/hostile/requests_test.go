package hostile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"rockpool/tests/platform"
)

var requests = []attack{
	{id: "H1", what: "bodies that are too deep, too large, of wrong types", script: badBodies},
	{id: "H2", what: "idle and half-sent connections, a bomb of headers", script: halfSent},
	{id: "H3", what: "a handshake of a foreign origin", script: foreignOrigin},
	{id: "H3", what: "frames that break the WebSocket protocol", script: brokenFrames},
	{id: "H3", what: "a flood of pings, then gone without a word", script: pings},
	{id: "H4", what: "no token, and tokens that nearly are", script: nearMisses},
	{id: "H6", what: "environments out of all bounds", script: boundless},
	{id: "H7", what: "a storm of changes, claims and deletions of one environment", script: storm},
	{id: "H8", what: "secrets in the log, in errors and in profiles", script: secretsKept},
}

func badBodies(ctx context.Context, a *arena, runner string) error {
	deep := strings.Repeat("[", 100_000)
	for _, c := range [][3]string{
		{"POST", "/runners", deep}, {"POST", "/runners", `{"executionEnvironmentId":` + deep}, {"POST", "/runners", `{"executionEnvironmentId":1e999}`},
		{"POST", "/runners", `{"executionEnvironmentId":NaN}`}, {"POST", "/runners", `{"executionEnvironmentId":99999999999999999999999}`},
		{"POST", "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":-1}`}, {"POST", "/runners", "\x00\x00"}, {"POST", "/runners", "\xff\xfe{"},
		{"POST", "/runners/" + runner + "/execute", `{"command":7}`}, {"POST", "/runners/" + runner + "/execute", `{"command":"x","environment":[1]}`},
		{"POST", "/runners/" + runner + "/execute", `{"command":"x","environment":{"A=B":"c"}}`}, {"POST", "/runners/" + runner + "/execute", `{"command":"` + strings.Repeat("x", 8<<20) + `"}`},
		{"PATCH", "/runners/" + runner + "/files", `{"copy":` + deep}, {"PATCH", "/runners/" + runner + "/files", `{"x":` + deep}, {"PATCH", "/runners/" + runner + "/files", `{"copy":[{"path":"x","content":5}]}`},
		{"PUT", "/execution-environments/14", `{"memoryLimit":1.5}`}, {"PUT", "/execution-environments/14", `{"cpuLimit":-1}`}, {"PUT", "/execution-environments/14", deep},
	} {
		status, body, err := a.Do(ctx, c[0], c[1], c[2])
		if err != nil || status < 400 || status > 499 {
			return fmt.Errorf("%s %s %.80s: status %d %.200s, %w", c[0], c[1], c[2], status, body, err)
		}
	}
	return nil
}

func (a *arena) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(a.URL, "http://"))
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return conn, err
}

func halfSent(ctx context.Context, a *arena, _ string) error {
	for i := range 400 {
		conn, err := a.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		switch i % 3 {
		case 0:
			_, err = io.WriteString(conn, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nA: ")
		case 1:
			_, err = io.WriteString(conn, "POST /api/v1/runners HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\r\n{")
		}
		if err != nil {
			return err
		}
	}
	if err := a.Healthy(ctx); err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		line := "X: " + strings.Repeat("x", 8000) + "\r\n"
		_, _ = io.WriteString(conn, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\n"+strings.Repeat(line, 500)+"\r\n")
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil //nolint:nilerr // cut off: that is bounded too
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		return fmt.Errorf("4 MB of headers: status %d", resp.StatusCode)
	}
	return nil
}

// shake opens the WebSocket of a cat and returns the bare connection.
func (a *arena) shake(ctx context.Context, runner, extra string) (net.Conn, *bufio.Reader, int, error) {
	at, err := a.Execute(ctx, runner, platform.Execution{Command: "cat", TimeLimit: 20})
	if err != nil {
		return nil, nil, 0, err
	}
	u, err := url.Parse(at)
	if err != nil {
		return nil, nil, 0, err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nPoseidon-Token: %s\r\n%s\r\n", u.RequestURI(), u.Host, a.token, extra)
	r := bufio.NewReader(conn)
	if err != nil {
		return conn, r, 0, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return conn, r, 0, err
	}
	return conn, r, resp.StatusCode, nil
}

func foreignOrigin(ctx context.Context, a *arena, runner string) error {
	for origin, want := range map[string]int{"http://evil.example": 403, "null": 403, a.URL: 101} {
		conn, _, status, err := a.shake(ctx, runner, "Origin: "+origin+"\r\n")
		if conn != nil {
			_ = conn.Close()
		}
		if err != nil || status != want {
			return fmt.Errorf("origin %s: status %d, %w", origin, status, err)
		}
	}
	return nil
}

func brokenFrames(ctx context.Context, a *arena, runner string) error {
	for name, frame := range map[string]string{
		"unmasked":                  "\x81\x02hi",
		"2^63 bytes":                "\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"a fragmented control":      "\x09\x80\x00\x00\x00\x00",
		"a control that is long":    "\x89\xfe\x01\x00\x00\x00\x00\x00",
		"compressed without asking": "\xc1\x80\x00\x00\x00\x00",
		"an unknown opcode":         "\x83\x80\x00\x00\x00\x00",
		"a continuation of nothing": "\x80\x80\x00\x00\x00\x00",
	} {
		conn, r, status, err := a.shake(ctx, runner, "")
		if err == nil && status == 101 {
			_, err = io.WriteString(conn, frame)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r) // the server must end it
		}
		if conn != nil {
			_ = conn.Close()
		}
		if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() || status != 101 {
			return fmt.Errorf("%s: status %d, %w", name, status, err)
		}
	}
	return nil
}

func pings(ctx context.Context, a *arena, runner string) error {
	conn, r, status, err := a.shake(ctx, runner, "")
	if err != nil || status != 101 {
		return fmt.Errorf("status %d, %w", status, err)
	}
	defer conn.Close()
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, r) }()
	ping := []byte("\x89\x84\x00\x00\x00\x00ping")
	for range 50 {
		if _, err := conn.Write(bytes.Repeat(ping, 500)); err != nil {
			break // refused: bounded too
		}
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
	<-drained
	return await(ctx, func() (bool, error) {
		out, err := a.sh(ctx, runner, `for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done | sort | uniq -c | grep -w cat | grep -vw 1; echo .`)
		return out == ".\n", err
	})
}

func nearMisses(ctx context.Context, a *arena, runner string) error {
	for _, token := range []string{"", a.token[:len(a.token)-1], a.token + "x", strings.ToLower(a.token), " " + a.token + "\t,", "null", strings.Repeat("x", 4000)} {
		if strings.TrimSpace(token) == a.token {
			continue
		}
		c := platform.New(a.URL, token)
		for path, method := range map[string]string{"/runners": "POST", "/runners/" + runner: "DELETE", "/runners/" + runner + "/files": "GET", "/runners/" + runner + "/execute": "POST",
			"/runners/" + runner + "/websocket?executionID=x": "GET", "/execution-environments/10": "DELETE", "/statistics/execution-environments": "GET"} {
			status, body, err := c.Do(ctx, method, path, "{}")
			if err != nil || status != 401 || len(body) > 0 {
				c.Close()
				return fmt.Errorf("token %.20q: %s %s: status %d %q, %w", token, method, path, status, body, err)
			}
		}
		c.Close()
	}
	return nil
}

func boundless(ctx context.Context, a *arena, _ string) (err error) {
	defer func() { _ = a.DeleteEnvironment(ctx, 15) }()
	for _, c := range []struct{ what, body string }{
		{"a pool of a billion", `{"image":"host","prewarmingPoolSize":1000000000,"cpuLimit":10,"memoryLimit":64}`},
		{"negative CPU", `{"image":"host","prewarmingPoolSize":1,"cpuLimit":-5,"memoryLimit":64}`},
		{"an image that is a path", `{"image":"../../x","prewarmingPoolSize":1,"cpuLimit":10,"memoryLimit":64}`},
		{"an image of a service", `{"image":"file:///etc/passwd","prewarmingPoolSize":1,"cpuLimit":10,"memoryLimit":64}`},
	} {
		status, body, err := a.Do(ctx, "PUT", "/execution-environments/15", c.body)
		if err != nil || status < 400 {
			return fmt.Errorf("%s: status %d %.300s, %w", c.what, status, body, err)
		}
	}
	return nil
}

// storm changes, claims and deletes at once. Afterwards all that counts is what the last change said.
func storm(ctx context.Context, a *arena, _ string) (err error) {
	const env = 16
	body := func(size, cpu int) string {
		return fmt.Sprintf(`{"image":"host","prewarmingPoolSize":%d,"cpuLimit":%d,"memoryLimit":64}`, size, cpu)
	}
	defer func() { err = errors.Join(err, a.DeleteEnvironment(ctx, env)) }()
	var wg sync.WaitGroup
	errs := make([]error, 12)
	for i := range errs {
		wg.Go(func() {
			for n := range 6 {
				var status int
				var text []byte
				switch (i + n) % 4 {
				case 0, 1:
					status, text, errs[i] = a.Do(ctx, "PUT", "/execution-environments/16", body(n%4, 10+i))
				case 2:
					status, text, errs[i] = a.Do(ctx, "DELETE", "/execution-environments/16", nil)
				default:
					var id string
					if id, errs[i] = a.Claim(ctx, env, time.Minute); errs[i] == nil {
						_, _ = a.sh(ctx, id, "true") // the environment may go at any moment, and its runners with it
						status, text, errs[i] = a.Do(ctx, "DELETE", "/runners/"+id, nil)
					} else if refused, ok := errors.AsType[*platform.StatusError](errs[i]); ok && (refused.Status == 404 || refused.Status == 500) {
						errs[i] = nil
					}
				}
				if errs[i] == nil && status == 500 && !bytes.Contains(text, []byte("errorCode")) {
					errs[i] = fmt.Errorf("%s", text)
				}
				if errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if status, text, err := a.Do(ctx, "PUT", "/execution-environments/16", body(3, 99)); err != nil || status != 201 && status != 204 {
		return fmt.Errorf("the last change: status %d %s, %w", status, text, err)
	}
	return await(ctx, func() (bool, error) {
		all, err := a.Statistics(ctx)
		s := all["16"]
		return s.IdleRunners == 3 && s.UsedRunners == 0 && s.PrewarmingPoolSize == 3, err
	})
}

func secretsKept(ctx context.Context, a *arena, runner string) error {
	secret := "kept-" + a.secret
	o, err := a.Run(ctx, runner, platform.Execution{Command: `echo "$PASSWORD" "$0"; exit 3`, TimeLimit: 10, Environment: map[string]string{"PASSWORD": secret}})
	if err != nil || !strings.Contains(o.Stdout, secret) {
		return fmt.Errorf("the program: %+v, %w", o, err)
	}
	if err := a.Copy(ctx, runner, nil, platform.File{Path: "secret", Content: []byte(secret)}); err != nil {
		return err
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/vars", "/metrics", "/api/v1/debug/pprof/heap"} {
		req, err := http.NewRequestWithContext(ctx, "GET", a.URL+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
		resp.Body.Close()
		if err != nil || bytes.Contains(text, []byte(secret)) || bytes.Contains(text, []byte(a.token)) || strings.Contains(path, "debug") && resp.StatusCode == 200 {
			return fmt.Errorf("%s: status %d, %w", path, resp.StatusCode, err)
		}
	}
	if log := a.log.String(); strings.Contains(log, secret) || strings.Contains(log, a.token) || strings.Contains(log, a.secret) {
		return errors.New("a secret is in the log")
	}
	return nil
}
