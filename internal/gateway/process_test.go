package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rockpool/internal/certs"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
)

// asProcess has this program be a gateway that its environment configures.
const asProcess = "GATEWAY_PROCESS"

func process() int {
	err := func() error {
		cfg, _, err := config.Load(os.DevNull, os.Environ())
		if err != nil {
			return err
		}
		log, err := logging.New(os.Stderr, "info", logging.Text)
		if err != nil {
			return err
		}
		g, err := gateway.New(cfg, nil, log)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		return g.Run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// unit is a gateway as systemd runs it.
type unit struct {
	*testing.T
	cmd    *exec.Cmd
	log    bytes.Buffer
	notify *net.UnixConn
	ended  chan struct{}
}

// newUnit starts one that gets sockets, and whose watchdog is as given.
func newUnit(t *testing.T, watchdog time.Duration, sockets []net.Listener, env ...string) *unit {
	t.Helper()
	dir, err := os.MkdirTemp("", "unit-") // t.TempDir may be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := filepath.Join(dir, "notify")
	u := &unit{T: t, ended: make(chan struct{})}
	if u.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	// LISTEN_PID is that of the process itself.
	u.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, "/proc/self/exe")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	u.cmd.Args[3] = self
	u.cmd.Env = append(append(os.Environ(), asProcess+"=1", "NOTIFY_SOCKET="+address, "LISTEN_FDS="+strconv.Itoa(len(sockets)),
		"ROCKPOOL_SERVER_SYSTEMDSOCKETACTIVATION=true", "ROCKPOOL_SERVER_TOKEN=secret"), env...)
	if watchdog > 0 {
		u.cmd.Env = append(u.cmd.Env, "WATCHDOG_USEC="+strconv.FormatInt(watchdog.Microseconds(), 10))
	}
	for _, l := range sockets {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		u.cmd.ExtraFiles = append(u.cmd.ExtraFiles, f)
	}
	u.cmd.Stderr = &u.log
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = u.cmd.Wait(); close(u.ended) }()
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		<-u.ended
		_ = u.notify.Close()
		if t.Failed() {
			t.Logf("its log:\n%s", &u.log)
		}
	})
	return u
}

func socket(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// says waits until systemd is told something.
func (u *unit) says(want string) string {
	u.Helper()
	_ = u.notify.SetReadDeadline(time.Now().Add(15 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := u.notify.Read(buf)
		if err != nil {
			u.Fatalf("%s was not said: %v", want, err)
		}
		if text := string(buf[:n]); strings.Contains(text, want) {
			return text
		}
	}
}

// stop asks for an orderly stop and returns the exit code.
func (u *unit) stop() int {
	u.Helper()
	if err := u.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.Fatal(err)
	}
	u.says("STOPPING=1")
	<-u.ended
	return u.cmd.ProcessState.ExitCode()
}

func TestSystemdHandsSocketsOver(t *testing.T) {
	c := nomadtest.New(t)
	c.Break("GET /v1/allocations", true) // it goes on recovering
	sockets := []net.Listener{socket(t), socket(t)}
	u := newUnit(t, 200*time.Millisecond, sockets, "ROCKPOOL_NOMAD_ADDRESS="+c.URL)
	u.says("READY=1")
	for range 3 { // an answer is one, whatever it says
		u.says("WATCHDOG=1")
	}
	for _, l := range sockets {
		for path, want := range map[string]int{"/health": 503, "/version": 200} {
			resp, err := http.Get("http://" + l.Addr().String() + "/api/v1" + path)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil || resp.StatusCode != want {
				t.Errorf("%s at %v: %d", path, l.Addr(), resp.StatusCode)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if code := u.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestNoSocketIsFatal(t *testing.T) {
	u := newUnit(t, 0, nil, "ROCKPOOL_NOMAD_ADDRESS=http://127.0.0.1:1")
	<-u.ended
	if code := u.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(u.log.String(), "systemd has handed over no socket") {
		t.Errorf("exit code %d", code)
	}
}

// certificates makes an authority and a server's certificate for loopback.
func certificates(t *testing.T) (files config.TLS, roots *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	ca, err := certs.CreateCA("", time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := certs.Create(ca, certs.Request{Role: certs.Server}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"ca.pem": ca.Cert, "cert.pem": pair.Cert, "key.pem": pair.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Cert)
	return config.TLS{Active: true, CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}, roots
}

func TestTheWatchdogTrustsOurOwnAuthority(t *testing.T) {
	files, roots := certificates(t)
	l := socket(t)
	u := newUnit(t, 400*time.Millisecond, []net.Listener{l}, "ROCKPOOL_NOMAD_ADDRESS="+nomadtest.New(t).URL, "ROCKPOOL_SERVER_TLS_ACTIVE=true",
		"ROCKPOOL_SERVER_TLS_CAFILE="+files.CAFile, "ROCKPOOL_SERVER_TLS_CERTFILE="+files.CertFile, "ROCKPOOL_SERVER_TLS_KEYFILE="+files.KeyFile)
	u.says("READY=1")
	u.says("WATCHDOG=1")
	u.says("WATCHDOG=1")
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12})
	if err == nil {
		conn.Close()
		t.Error("it speaks TLS 1.2")
	}
	if code := u.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A stop waits for executions, refuses what is new, and in the end ends what is left.
func TestAStopLetsExecutionsFinish(t *testing.T) {
	h := ready(t, "2", 2, func(c *config.Config) { c.Server.StopTimeout = 30 })
	r := h.claim("0")
	short, waiting := h.dial(h.execute(r, `{"command":"cat"}`)), h.execute(r, `{"command":"echo hi"}`)
	if _, data, err := short.ReadMessage(); err != nil || string(data) != `{"type":"start"}` {
		t.Fatal(string(data), err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); h.stop() }()
	h.eventually("it says that it stops", func() bool {
		code, text, _ := h.do("GET", "/health", "")
		return code == 503 && strings.Contains(text, "stopping")
	})
	h.want("GET", "/rockpool/ready", "", 503, "the gateway is stopping: send the request to another one")
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, "the gateway is stopping: send the request to another one")
	_, path, _ := strings.Cut(waiting, "/api/v1")
	h.want("GET", path, "", 500, "stopping")
	if err := short.WriteMessage(1, []byte("last words\x04")); err != nil {
		t.Fatal(err)
	}
	got, code := h.rest(short)
	if all := strings.Join(got, ""); code != 1000 || !strings.Contains(all, "last words") || !strings.Contains(all, `{"type":"exit","data":0}`) {
		t.Errorf("got %q and %d", got, code)
	}
	<-stopped
}

// Who waits in line for a runner is told at once that there will be none here.
func TestAStopIsNotHeldUpByClaimsInLine(t *testing.T) {
	h := ready(t, "1", 1)
	h.cluster.Hold(true) // nothing starts any more
	h.claim("0")
	answered := make(chan string, 1)
	go func() {
		code, text, _ := h.do("POST", "/runners", `{"executionEnvironmentId":10,"waitTimeout":60}`)
		answered <- fmt.Sprint(code, " ", text)
	}()
	h.eventually("it waits", func() bool {
		_, text, _ := h.do("GET", "/rockpool/pools/10", "")
		return strings.Contains(text, `"waiting":1`)
	})
	began := time.Now()
	h.stop()
	if got := <-answered; !strings.Contains(got, "500") || !strings.Contains(got, "the gateway is stopping") || time.Since(began) > 10*time.Second {
		t.Errorf("after %v: %s", time.Since(began), got)
	}
}

func TestAStopEndsWhatDoesNotFinish(t *testing.T) {
	t.Parallel()
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.StopTimeout = 1 })
	conn := h.dial(h.execute(h.claim("0"), `{"command":"cat"}`))
	began := time.Now()
	stopped := make(chan struct{})
	go func() { defer close(stopped); h.stop() }()
	h.messages(conn, `{"type":"start"}`, `{"type":"error","data":"Error executing the request"}`)
	if d := time.Since(began); d < 900*time.Millisecond {
		t.Errorf("it was ended after %v", d)
	}
	<-stopped
}

// A request that does not end, because its client does not read, holds a stop up for its time and no longer. What it was sent is cut off, never ended.
func TestAStopCutsOffRequestsThatDoNotEnd(t *testing.T) {
	t.Parallel()
	h, id := with(t)
	h.cluster.SetFiles(id, nomadtest.File{Name: "large", Content: strings.Repeat("x", 32<<20)})
	r, err := http.NewRequest("GET", h.url+"/runners/"+id+"/files/raw?path=large", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", "secret")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	began := time.Now()
	h.stop()
	if took := time.Since(began); took < 14*time.Second || took > 30*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= 32<<20 {
		t.Errorf("the client got %d bytes, and %v", n, err)
	}
}
