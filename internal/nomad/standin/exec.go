package standin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"
)

// ExecFault is what goes wrong with an exec whose command contains Match. Zero fields change nothing.
type ExecFault struct {
	Match  string
	Times  int // how often; 0 = always
	Status int // the handshake is refused with it
	Text   string
	// Close is the code of a close frame, 1006 = the connection is dropped; sent at once, or when the program has ended, or when After bytes came out.
	Close   int
	AtStart bool
	After   int
	// Noise comes on stdout with Exit, as Docker's own complaints do; nothing is run.
	Noise string
	Exit  int
	// Cut loses what was written last, as Nomad does since 1.9.
	Cut bool
	// Lose has these streams lose the record of the end.
	Lose []string
	// NoEOF keeps the end of stdin from the program, as 1.9.0 does.
	NoEOF bool
	// Hold stops the output until the channel is closed.
	Hold <-chan struct{}
	// WrongCode is told as the exit code.
	WrongCode int
}

// FailExec has execs fail.
func (s *Server) FailExec(f ExecFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.execFaults = append(s.execFaults, &f)
}

// HealExec has all execs work again.
func (s *Server) HealExec() { s.mu.Lock(); s.execFaults = nil; s.mu.Unlock() }

func (s *Server) execFault(command string) ExecFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.execFaults {
		if strings.Contains(command, f.Match) {
			if f.Times == 1 {
				s.execFaults = append(s.execFaults[:i:i], s.execFaults[i+1:]...)
			}
			f.Times--
			return *f
		}
	}
	return ExecFault{}
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var argv []string
	err := json.Unmarshal([]byte(q.Get("command")), &argv)
	fault := s.execFault(strings.Join(argv, " "))
	if fault.Status != 0 {
		http.Error(w, fault.Text, fault.Status)
		return
	}
	up := websocket.Upgrader{ReadBufferSize: 2048, WriteBufferSize: 2048}
	conn, e := up.Upgrade(w, r, nil)
	if e != nil {
		return
	}
	defer conn.Close()
	refuse := func(code int, text string) {
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(time.Second))
	}
	box, problem := s.enter(r.PathValue("alloc"), q.Get("task"))
	if box != nil {
		defer box.running.Done()
	}
	switch {
	case fault.Close != 0 && fault.AtStart:
		if fault.Close != 1006 {
			refuse(fault.Close, fault.Text)
		}
	case err != nil || len(argv) == 0:
		refuse(1008, "Missing command")
	case problem != "":
		refuse(1008, problem)
	case fault.Noise != "":
		_ = conn.WriteJSON(map[string]any{"stdout": map[string]any{"data": []byte(fault.Noise)}})
		_ = conn.WriteJSON(map[string]any{"exited": true, "result": map[string]int{"exit_code": fault.Exit}})
	default:
		s.execs.Add(1)
		defer s.execs.Add(-1)
		(&run{conn: conn, fault: fault}).serve(box, q.Get("tty") == "true", s.taskEnv, argv)
	}
}

// run is one program.
type run struct {
	conn  *websocket.Conn
	fault ExecFault

	mu   sync.Mutex // of writing
	gone bool
	sent int
}

func (r *run) send(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write(v)
}

func (r *run) write(v any) {
	if !r.gone && r.conn.WriteJSON(v) != nil {
		r.gone = true
	}
}

func (r *run) output(stream string, data []byte) {
	if r.fault.Hold != nil {
		<-r.fault.Hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := bytes.LastIndexByte(data, 0x1e); i >= 0 && slices.Contains(r.fault.Lose, stream) && bytes.Contains(data[i:], []byte(":exit:")) {
		data = data[:i]
	}
	r.write(map[string]any{stream: map[string]any{"data": data}})
	r.sent += len(data)
	if r.fault.Close != 0 && r.fault.After > 0 && r.sent >= r.fault.After {
		r.cut() // before the other stream can say more
	}
}

func (r *run) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut()
}

func (r *run) cut() {
	r.gone = true
	if r.fault.Close != 1006 {
		_ = r.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(r.fault.Close, r.fault.Text), time.Now().Add(time.Second))
	}
	_ = r.conn.Close()
}

// stream is one that the program writes to.
type stream struct {
	name string
	from *os.File
}

// openTerminal is pty.Open with a master whose reads heed deadlines: a program that lives on may hold the other side.
func openTerminal() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = slave.Close()
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), blocking.Name()), slave, nil
}

// resize leaves a terminal's reads as they are, which pty.Setsize does not.
func resize(terminal *os.File, size *api.TerminalSize) {
	if raw, err := terminal.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
		})
	}
}

func (r *run) serve(box *container, tty bool, env, argv []string) {
	cmd := box.command(tty, env, argv)
	var stdin *os.File
	var outs []stream
	var inner []*os.File
	if tty {
		master, slave, err := openTerminal()
		if err != nil {
			return
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		stdin, outs, inner = master, []stream{{"stdout", master}}, []*os.File{slave}
	} else {
		in, inWriter, _ := os.Pipe()
		out, outWriter, _ := os.Pipe()
		errs, errWriter, _ := os.Pipe()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, outWriter, errWriter
		stdin, outs, inner = inWriter, []stream{{"stdout", out}, {"stderr", errs}}, []*os.File{in, outWriter, errWriter}
	}
	err := cmd.Start()
	for _, f := range inner {
		_ = f.Close()
	}
	if err != nil {
		r.fault.Close, r.fault.Text = 1011, err.Error()
		r.close()
		return
	}
	var input, output sync.WaitGroup
	ended := make(chan struct{})
	input.Go(func() { r.input(stdin, tty) })
	for _, o := range outs {
		output.Go(func() { r.copy(o, ended) })
	}
	_ = cmd.Wait()
	close(ended)
	for _, o := range outs {
		_ = o.from.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a child may hold it
	}
	output.Wait()
	if r.fault.Close != 0 {
		r.close()
	} else {
		r.exit(cmd)
	}
	_ = r.conn.Close() // without a close frame, as Nomad
	input.Wait()
	_ = stdin.Close()
	for _, o := range outs {
		_ = o.from.Close()
	}
}

func (r *run) exit(cmd *exec.Cmd) {
	code := cmd.ProcessState.ExitCode()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		code = 128 + int(st.Signal())
	}
	if r.fault.WrongCode != 0 {
		code = r.fault.WrongCode
	}
	result := map[string]int{}
	if code != 0 {
		result["exit_code"] = code
	}
	r.send(map[string]any{"stdout": map[string]any{"close": true}})
	r.send(map[string]any{"exited": true, "result": result})
}

func (r *run) input(stdin *os.File, tty bool) {
	for {
		var in api.ExecStreamingInput
		if err := r.conn.ReadJSON(&in); err != nil {
			r.mu.Lock()
			r.gone = true
			r.mu.Unlock()
			if !tty {
				_ = stdin.Close()
			}
			return // the program goes on, as in Docker
		}
		switch {
		case in.TTYSize != nil && tty:
			resize(stdin, in.TTYSize)
		case in.Stdin == nil:
		case in.Stdin.Close && !tty && !r.fault.NoEOF:
			_ = stdin.Close()
		case len(in.Stdin.Data) > 0:
			_, _ = stdin.Write(in.Stdin.Data)
		}
	}
}

// copy hands output on until nobody can write any more. What is cut off is what waits when the program ends.
func (r *run) copy(o stream, ended <-chan struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if r.fault.Cut {
				select {
				case <-ended:
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
			r.output(o.name, buf[:n])
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EIO) {
				r.send(map[string]any{})
			}
			return
		}
	}
}
