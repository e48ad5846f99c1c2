package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"

	"rockpool/tests/service"
)

const dialBound = time.Second

// agent is one process of the cluster, on a machine of its own, through all its starts.
type agent struct {
	*machine
	dir    string // the data directory is below it
	config string
	log    *service.Log

	mu   sync.Mutex
	cmd  *exec.Cmd     // guarded by mu; nil = it does not run
	done chan struct{} // guarded by mu; of cmd
}

// diskMB is the size of a server's disk. It is a file system of its own, so that it can be filled.
const diskMB = 96

// group is the whole cluster.
type group struct {
	t       *testing.T
	dir     string
	bin     string
	servers []*agent
	nodes   []*agent
	tls     *tls.Config
}

// found makes certificates, machines and configurations, and starts everything.
func found(t *testing.T) *group {
	t.Helper()
	g := &group{t: t, dir: t.TempDir(), bin: os.Getenv(binaryAt)}
	g.run("tls", "ca", "create")
	key := strings.TrimSpace(g.run("operator", "gossip", "keyring", "generate"))
	for i := range 3 {
		g.servers = append(g.servers, g.agent(fmt.Sprint("s", i+1), fmt.Sprint("198.18.0.", 11+i), "--server"))
	}
	for i := range 2 {
		g.nodes = append(g.nodes, g.agent(fmt.Sprint("n", i+1), fmt.Sprint("198.18.0.", 21+i), "--client"))
	}
	g.run("tls", "cert", "create", "--cli", "--name", "cli")
	for _, a := range g.servers {
		if err := unix.Mount("tmpfs", a.dir, "tmpfs", 0, fmt.Sprintf("size=%dm", diskMB)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(a.dir, unix.MNT_DETACH) })
		var others []string
		for _, o := range g.servers {
			if o != a {
				others = append(others, fmt.Sprintf("%q", o.ip))
			}
		}
		g.write(a, fmt.Sprintf(`
server {
  enabled          = true
  bootstrap_expect = 3
  encrypt          = %q
  raft_log_segment = 1048576
  server_join {
    retry_join     = [%s]
    retry_interval = "1s"
  }
}
`, key, strings.Join(others, ", ")))
	}
	var urls []string
	for _, a := range g.servers {
		urls = append(urls, fmt.Sprintf("%q", a.url()))
	}
	for _, a := range g.nodes {
		g.write(a, fmt.Sprintf(`
client {
  enabled = true
  on_stop = "remove"
  servers = [%s]
  network {
    range = ""
  }
}
`, strings.Join(urls, ", ")))
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(g.read("rockpool-agent-ca.pem"))
	cert, err := tls.X509KeyPair(g.read("cli.pem"), g.read("cli-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	g.tls = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	for _, a := range append(g.servers, g.nodes...) {
		if err := a.begin(g.bin); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// run runs the program once and returns what it prints.
func (g *group) run(args ...string) string {
	g.t.Helper()
	cmd := exec.Command(g.bin, args...)
	cmd.Dir = g.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		g.t.Fatalf("orchestrator %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (g *group) read(name string) []byte {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *group) agent(name, ip, role string) *agent {
	g.t.Helper()
	m, err := newMachine(name, ip)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(m.close)
	g.run("tls", "cert", "create", role, "--additional-ipaddress", ip, "--name", name)
	a := &agent{machine: m, dir: filepath.Join(g.dir, name), config: filepath.Join(g.dir, name+".hcl"), log: &service.Log{}}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		g.t.Fatal(err)
	}
	return a
}

func (g *group) write(a *agent, rest string) {
	g.t.Helper()
	file := func(name string) string { return filepath.Join(g.dir, name) }
	text := fmt.Sprintf(`
name      = %q
data_dir  = %q
bind_addr = %q
log_level = "INFO"
tls {
  http                   = true
  rpc                    = true
  verify_server_hostname = true
  verify_https_client    = true
  ca_file                = %q
  cert_file              = %q
  key_file               = %q
}
`, a.name, filepath.Join(a.dir, "data"), a.ip, file("rockpool-agent-ca.pem"), file(a.name+".pem"), file(a.name+"-key.pem"))
	if err := os.WriteFile(a.config, []byte(text+rest), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (a *agent) url() string { return "https://" + a.ip + ":4646" }

// begin starts the process, unless it runs.
func (a *agent) begin(bin string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd != nil {
		select {
		case <-a.done:
		default:
			return nil
		}
	}
	cmd := exec.Command(bin, "agent", "--config", a.config)
	cmd.Stdout, cmd.Stderr = a.log, a.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", a.name, err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	a.cmd, a.done = cmd, done
	return nil
}

// signal sends one to the process that this test started.
func (a *agent) signal(s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		return nil
	}
	if err := a.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// ended is closed when the process has.
func (a *agent) ended() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done
}

func (a *agent) kill() error {
	err := a.signal(syscall.SIGKILL)
	<-a.ended()
	return err
}

// stop asks for an orderly end.
func (a *agent) stop() error {
	if a.ended() == nil {
		return nil
	}
	err := errors.Join(a.signal(syscall.SIGCONT), a.signal(syscall.SIGTERM))
	select {
	case <-a.ended():
		return err
	case <-time.After(40 * time.Second):
		return errors.Join(err, fmt.Errorf("%s did not end within 40 s of SIGTERM", a.name), a.kill())
	}
}

// filler takes the room on a server's disk.
func (a *agent) filler() string { return filepath.Join(a.dir, "filler") }

// fill leaves no room on the disk.
func (a *agent) fill() error {
	f, err := os.Create(a.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	block := bytes.Repeat([]byte{1}, 64<<10)
	for size := len(block); size > 0; {
		if _, err := f.Write(block[:size]); errors.Is(err, unix.ENOSPC) {
			size /= 4
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (a *agent) empty() error { return os.Remove(a.filler()) }

// client speaks to one server.
func (g *group) client(a *agent) *api.Client {
	g.t.Helper()
	c := api.DefaultConfig()
	c.Address = a.url()
	c.HttpClient = &http.Client{Transport: &http.Transport{TLSClientConfig: g.tls.Clone(), MaxIdleConnsPerHost: 64, TLSHandshakeTimeout: 3 * time.Second}}
	c.TLSConfig = &api.TLSConfig{
		CACert: filepath.Join(g.dir, "rockpool-agent-ca.pem"), ClientCert: filepath.Join(g.dir, "cli.pem"), ClientKey: filepath.Join(g.dir, "cli-key.pem"),
	}
	client, err := api.NewClient(c)
	if err != nil {
		g.t.Fatal(err)
	}
	return client
}

// logs is the end of every agent's log.
func (g *group) logs() string {
	var b strings.Builder
	for _, a := range append(g.servers, g.nodes...) {
		fmt.Fprintf(&b, "--- %s\n%s\n", a.name, a.log.Tail(4000))
	}
	return b.String()
}
