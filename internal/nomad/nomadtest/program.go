package nomadtest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"
)

// File is one entry of a runner's files.
type File struct {
	Name, Content, Type, User string
	Unsized                   bool // its length is not told
	Cut                       bool // the answer breaks off at it
}

// Upload is one request to write files.
type Upload struct {
	Deletes []string
	Headers []tar.Header
	Content map[string]string
}

// SetFiles says what an allocation's files are; id is the job's.
func (c *Cluster) SetFiles(id string, files ...File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files[c.allocs[id].ID] = files
}

// Uploads are all requests to write files so far.
func (c *Cluster) Uploads() []Upload { c.mu.Lock(); defer c.mu.Unlock(); return c.uploads }

// Running is how many programs run.
func (c *Cluster) Running() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.running) }

type process struct {
	alloc    string
	env      map[string]string
	user     string
	tty      bool
	stdin    chan string
	sizes    chan api.TerminalSize
	signals  chan string
	killed   chan struct{}
	lost     chan struct{}
	onceKill sync.Once
	onceLost sync.Once
	send     func(stream string, data []byte)
}

func (p *process) kill() { p.onceKill.Do(func() { close(p.killed) }) }
func (p *process) lose() { p.onceLost.Do(func() { close(p.lost) }) }

// lost is the exit code of a program whose stream ends without one.
const lost = -1

// run is what commands do: "echo x", "err x", "env NAME", "whoami", "exit n", "cat" (until EOF or 0x04), "wait" (until QUIT), "hang"
// (until killed), "flood n" (n KiB), "size", "lost", "trap" (prints signals), joined by "; ".
func (p *process) run(command string) int {
	command = strings.ReplaceAll(command, "'", "") // the words of the terminal client are quoted
	for part := range strings.SplitSeq(command, "; ") {
		verb, arg, _ := strings.Cut(part, " ")
		n, _ := strconv.Atoi(arg)
		switch verb {
		case "echo":
			p.send("stdout", []byte(arg+"\n"))
		case "err":
			p.send("stderr", []byte(arg+"\n"))
		case "env":
			p.send("stdout", []byte(arg+"="+p.env[arg]+"\n"))
		case "whoami":
			p.send("stdout", []byte(p.user+"\n"))
		case "bytes": // one byte a frame
			for i := range len(arg) {
				p.send("stdout", []byte{arg[i]})
			}
		case "exit":
			return n
		case "lost":
			return lost
		case "flood":
			for range n {
				select {
				case <-p.killed:
					return 137
				default:
					p.send("stdout", bytes.Repeat([]byte("x"), 1024))
				}
			}
		case "size":
			s := <-p.sizes
			p.send("stdout", fmt.Appendf(nil, "%dx%d\n", s.Width, s.Height))
		case "cat", "wait", "hang":
			if code, ended := p.wait(verb); ended {
				return code
			}
		}
	}
	return 0
}

func (p *process) wait(verb string) (code int, ended bool) {
	for {
		select {
		case in, open := <-p.stdin:
			switch {
			case verb == "hang":
				if !open {
					p.stdin = nil
				}
			case !open:
				return 0, verb != "cat"
			case verb == "cat" && strings.Contains(in, "\x04"):
				if before, _, _ := strings.Cut(in, "\x04"); before != "" {
					p.send("stdout", []byte(before))
				}
				return 0, false
			case strings.Contains(in, "\x1c"):
				return 131, true
			case verb == "cat":
				p.send("stdout", []byte(in))
			}
		case s := <-p.signals:
			p.send("stdout", []byte(s+"\n"))
			if s == "SIGQUIT" && verb != "hang" {
				return 131, true
			}
		case <-p.killed:
			return 137, true
		case <-p.lost:
			return lost, true
		}
	}
}

func (c *Cluster) execRoutes(handle func(string, func(http.ResponseWriter, *http.Request))) {
	const base = "/v1/client/allocation/{alloc}"
	handle("GET "+base+"/exec", c.exec)
	find := func(w http.ResponseWriter, r *http.Request) *process {
		c.mu.Lock()
		p := c.running[r.PathValue("id")]
		c.mu.Unlock()
		if p == nil {
			http.Error(w, "unknown execution", http.StatusNotFound)
		}
		return p
	}
	handle("GET "+base+"/execution/{id}", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, map[string]any{"State": "exited", "ExitCode": 0, "CPUTimeNS": 5e6, "WallTimeNS": 7e6, "PeakMemoryBytes": 4096, "Signal": 9, "Verdict": "exit", "OutputBytes": 2})
	})
	handle("DELETE "+base+"/execution/{id}", func(w http.ResponseWriter, r *http.Request) {
		if p := find(w, r); p != nil {
			p.kill()
			c.answer(w, map[string]int{"Index": 0})
		}
	})
	handle("PUT "+base+"/execution/{id}/signal", func(w http.ResponseWriter, r *http.Request) {
		var s struct{ Signal string }
		_ = json.NewDecoder(r.Body).Decode(&s)
		if p := find(w, r); p != nil {
			p.signals <- s.Signal
			c.answer(w, map[string]int{"Index": 0})
		}
	})
	handle("PUT "+base+"/files", c.putFiles)
	handle("GET "+base+"/files", c.listFiles)
	handle("GET "+base+"/files/raw", c.readFile)
}

func (c *Cluster) exec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var argv []string
	_ = json.Unmarshal([]byte(q.Get("command")), &argv)
	p := &process{
		alloc: r.PathValue("alloc"), user: q.Get("rockpool_user"), tty: q.Get("tty") == "true", stdin: make(chan string, 64),
		sizes: make(chan api.TerminalSize, 8), signals: make(chan string, 8), killed: make(chan struct{}), lost: make(chan struct{}),
	}
	p.env = map[string]string{}
	environ, _ := base64.RawURLEncoding.DecodeString(q.Get("rockpool_environ"))
	for v := range strings.SplitSeq(string(environ), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		p.env[name] = value
	}
	up := websocket.Upgrader{}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	var mu sync.Mutex
	p.send = func(stream string, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		if conn.WriteJSON(map[string]any{stream: map[string]any{"data": data}}) != nil {
			p.kill()
		}
	}
	id := q.Get("rockpool_id")
	c.mu.Lock()
	c.running[id] = p
	c.mu.Unlock()
	var reader sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	reader.Go(func() { p.read(ctx, conn) })
	code := p.run(argv[len(argv)-1])
	c.mu.Lock()
	delete(c.running, id)
	c.mu.Unlock()
	mu.Lock()
	if code != lost {
		result := map[string]int{}
		if code != 0 {
			result["exit_code"] = code
		}
		_ = conn.WriteJSON(map[string]any{"exited": true, "result": result, "rockpool_start": "warm"})
	}
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	mu.Unlock()
	cancel()
	// What the client still sends to a closed connection would cost it what it has not read yet.
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	reader.Wait()
	_ = conn.Close()
}

func (p *process) read(ctx context.Context, conn *websocket.Conn) {
	open := true
	for {
		var in api.ExecStreamingInput
		if err := conn.ReadJSON(&in); err != nil {
			p.kill() // as the native side does
			return
		}
		switch {
		case in.TTYSize != nil:
			p.sizes <- *in.TTYSize
		case in.Stdin != nil && in.Stdin.Close && open:
			open = false
			close(p.stdin)
		case in.Stdin != nil && open && len(in.Stdin.Data) > 0:
			select {
			case p.stdin <- string(in.Stdin.Data):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (c *Cluster) putFiles(w http.ResponseWriter, r *http.Request) {
	body := bufio.NewReader(r.Body)
	head, err := body.ReadBytes('\n')
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var first struct{ Delete []string }
	_ = json.Unmarshal(head, &first)
	u := Upload{Deletes: first.Delete, Content: map[string]string{}}
	refused := ""
	for tr := tar.NewReader(body); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		data, _ := io.ReadAll(tr)
		if strings.HasPrefix(h.Name, "/proc/") {
			refused = h.Name + ": Cannot open: Permission denied"
			continue
		}
		u.Headers = append(u.Headers, *h)
		u.Content[h.Name] = string(data)
	}
	c.mu.Lock()
	c.uploads = append(c.uploads, u)
	c.mu.Unlock()
	if refused != "" {
		http.Error(w, refused, http.StatusUnprocessableEntity)
		return
	}
	c.answer(w, map[string]int{"Index": 0})
}

func (c *Cluster) listFiles(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	files := c.files[r.PathValue("alloc")]
	c.mu.Unlock()
	if r.URL.Query().Get("path") == "missing" {
		http.Error(w, "file not found", http.StatusFailedDependency)
		return
	}
	e := json.NewEncoder(w)
	for _, f := range files {
		if f.Cut {
			return
		}
		_ = e.Encode(map[string]any{"name": f.Name, "type": f.Type, "size": len(f.Content), "mod_time": 7, "permissions": "rwxr--r--+",
			"owner": "root", "group": "root"})
	}
	_ = e.Encode(map[string]bool{"end": true})
}

func (c *Cluster) readFile(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	files := c.files[r.PathValue("alloc")]
	c.mu.Unlock()
	for _, f := range files {
		if f.Name != r.URL.Query().Get("path") {
			continue
		}
		if !f.Unsized {
			w.Header().Set("Content-Length", strconv.Itoa(len(f.Content)))
		}
		if f.Cut {
			_, _ = w.Write([]byte(f.Content[:len(f.Content)/2]))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if f.Unsized {
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = w.Write([]byte(f.Content))
		return
	}
	http.Error(w, "file not found", http.StatusFailedDependency)
}
