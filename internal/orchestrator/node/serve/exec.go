package serve

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/wire"
	"rockpool/internal/timeline"
)

type execRequest struct {
	taskPath
	TTY     endpoint.Flag `query:"tty"`
	Command string        `query:"command"`
	ExecID  string        `query:"rockpool_id"`
	Env     string        `query:"rockpool_env"`
	Dir     string        `query:"rockpool_dir"`
	User    string        `query:"rockpool_user"`
	Environ string        `query:"rockpool_environ"`
	Split   endpoint.Flag `query:"rockpool_split"`
	execLimits
}

// execLimits are what the node holds an execution to; 0 = no limit.
type execLimits struct {
	TimeLimit  int64         `query:"rockpool_time_limit_ms"`
	CPULimit   int64         `query:"rockpool_cpu_limit_ms"`
	Output     int64         `query:"rockpool_output_limit"` // bytes
	Grace      int64         `query:"rockpool_grace_ms"`
	Background endpoint.Flag `query:"rockpool_background"`
}

// into fills in a spec.
func (l execLimits) into(spec *driver.ExecSpec) error {
	spec.OutputLimit, spec.Background = l.Output, bool(l.Background)
	if l.Output < 0 {
		return fault.New(fault.Invalid, "rockpool_output_limit must not be negative")
	}
	for _, v := range []struct {
		name string
		ms   int64
		to   *time.Duration
	}{
		{"rockpool_time_limit_ms", l.TimeLimit, &spec.TimeLimit}, {"rockpool_cpu_limit_ms", l.CPULimit, &spec.CPULimit}, {"rockpool_grace_ms", l.Grace, &spec.Grace},
	} {
		if v.ms < 0 || v.ms > math.MaxInt64/int64(time.Millisecond) {
			return fault.New(fault.Invalid, "%s must be a number of milliseconds, and not negative", v.name)
		}
		*v.to = time.Duration(v.ms) * time.Millisecond
	}
	return nil
}

// environ takes the environment apart: first the variables of the JSON object, then those given as bytes.
func (r execRequest) environ() ([]string, error) {
	env := map[string]string{}
	if err := json.Unmarshal([]byte(cmp.Or(r.Env, "{}")), &env); err != nil {
		return nil, fault.New(fault.Invalid, "rockpool_env is not a JSON object of strings")
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	raw, err := base64.RawURLEncoding.DecodeString(r.Environ)
	if err != nil || len(raw) > 0 && raw[len(raw)-1] != 0 {
		return nil, fault.New(fault.Invalid, "rockpool_environ is not NAME=value, each ended by a NUL, in base64url without padding")
	}
	for v := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\x00"), "\x00") {
		if v != "" {
			list = append(list, v)
		}
	}
	return list, nil
}

const (
	execChunk     = 32 << 10         // bytes of output in a frame, at most
	execSmall     = 512              // bytes that are read at a time while there is little to read
	execFrame     = 1 << 20          // bytes of a client's frame, at most
	execHeartbeat = 10 * time.Second // as Nomad's clients know it
	execOwnBeat   = 30 * time.Second // of an execution with an id: thousands of them may wait, and each beat costs both ends
	execWrite     = 30 * time.Second // for a client to take a frame
	execLinger    = time.Second      // for a client to answer the close frame of an error
	execDrain     = 30 * time.Second // for a client that is behind to read the output and answer the close frame after it
)

// exec runs a program in a task and carries its streams over a WebSocket. What goes wrong after the upgrade is a close frame. The server has asked for the
// caller's right, which may come in the first message: none is left here.
func (h *Handler) exec(w http.ResponseWriter, r *http.Request, _ auth.Identity, req execRequest) error {
	conn, err := Upgrade(w, r)
	if err != nil || conn == nil {
		return err
	}
	defer conn.Close()
	ctx := r.Context()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends reads and writes
	defer unhook()
	begin, span := timeline.Start(ctx, timeline.NodeExec)
	run, err := h.startExec(begin, req)
	span.Fail(err)
	span.End()
	if err != nil {
		Refuse(conn, err)
		return nil
	}
	h.execs.Add(1)
	defer h.execs.Add(-1)
	s := &execSession{conn: conn, run: run, out: make(chan []byte), beat: execHeartbeat, alone: h.alone}
	if req.ExecID != "" {
		s.beat = execOwnBeat
	}
	s.call, s.span = timeline.From(ctx), timeline.From(ctx).Child(timeline.NodeRun)
	defer s.span.End()
	s.serve(ctx)
	return nil
}

// alone reports whether at most one execution is carried.
func (h *Handler) alone() bool { return h.execs.Load() <= 1 }

// execBuffers are the write buffers of connections that are writing, execChunks what is read into while there is much to read. An execution that waits holds
// none of them.
var (
	execBuffers sync.Pool
	execChunks  = sync.Pool{New: func() any { return new([execChunk]byte) }}
)

// Upgrade makes a request the WebSocket of an execution. A nil connection without an error says that the request was answered.
func Upgrade(w http.ResponseWriter, r *http.Request) (*websocket.Conn, error) {
	if !websocket.IsWebSocketUpgrade(r) {
		return nil, wire.Answer(http.StatusInternalServerError, "websocket: the client is not using the websocket protocol: 'upgrade' token not found in 'Connection' header")
	}
	// The reader is that of the connection: what it holds beyond the first message is not lost to whoever takes the connection over.
	up := websocket.Upgrader{WriteBufferSize: execChunk * 3 / 2, WriteBufferPool: &execBuffers, Error: func(w http.ResponseWriter, _ *http.Request, _ int, reason error) {
		wire.WriteError(w, wire.Answer(http.StatusInternalServerError, "%s", reason.Error()))
	}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil //nolint:nilerr // it was answered
	}
	conn.SetReadLimit(execFrame)
	return conn, nil
}

// startExec checks what is asked for, and starts it.
func (h *Handler) startExec(ctx context.Context, req execRequest) (driver.Execution, error) {
	spec := driver.ExecSpec{TTY: bool(req.TTY)}
	if err := json.Unmarshal([]byte(req.Command), &spec.Argv); err != nil || len(spec.Argv) == 0 {
		return nil, fault.New(fault.Invalid, "command is not present, or not a JSON array of strings")
	}
	if req.Task == "" {
		return nil, fault.New(fault.Invalid, "task name is not present")
	}
	if req.ExecID != "" {
		if err := execID(req.ExecID); err != nil {
			return nil, err
		}
		spec.ID, spec.Dir, spec.User, spec.SplitStderr = req.ExecID, req.Dir, req.User, bool(req.Split)
		var err error
		if spec.Env, err = req.environ(); err != nil {
			return nil, err
		}
		if err := req.into(&spec); err != nil {
			return nil, err
		}
	}
	return h.start(ctx, req.ID, req.Task, spec)
}

// start starts what was asked for, on whatever way.
func (h *Handler) start(ctx context.Context, allocID, task string, spec driver.ExecSpec) (driver.Execution, error) {
	for _, v := range spec.Env {
		if i := strings.IndexByte(v, '='); i <= 0 || strings.IndexByte(v, 0) >= 0 {
			return nil, fault.New(fault.Invalid, "a variable of the environment needs a name, and holds no NUL")
		}
	}
	run, err := h.node.Exec(ctx, allocID, task, spec)
	if errors.Is(err, driver.ErrNoCommand) {
		return nil, fault.Wrap(fault.Internal, err, "command not found: %s", spec.Argv[0])
	}
	return run, taskError(err, task)
}

// Refuse ends the WebSocket of an execution that was not started, or of which no more is known.
func Refuse(conn *websocket.Conn, err error) { goodbye(conn, closeCode(err), fault.Public(err)) }

// closeCode is 1008 for what the caller can mend and 1011 for the rest, among which Nomad counts a missing right.
func closeCode(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.NotFound:
		return websocket.ClosePolicyViolation
	}
	return websocket.CloseInternalServerErr
}

// goodbye sends a close frame and waits a moment for its answer, so that the text is not lost with the connection.
func goodbye(conn *websocket.Conn, code int, text string) {
	const longest = 123 // bytes of text that a close frame can carry
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "")
	}
	now := time.Now()
	if conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), now.Add(execLinger)) != nil {
		return
	}
	_ = conn.SetReadDeadline(now.Add(execLinger))
	for {
		if _, _, err := conn.NextReader(); err != nil {
			return
		}
	}
}

// execSession carries one execution. Only the writer writes to the connection, until it has ended.
type execSession struct {
	conn *websocket.Conn
	run  driver.Execution
	out  chan []byte // frames for the writer
	beat time.Duration

	call, span *timeline.Span // the request and the running of its program; nil = nothing is recorded

	pace  pace
	alone func() bool // no other execution is carried
}

// serve returns when the execution has ended and all goroutines have.
func (s *execSession) serve(ctx context.Context) {
	ctx, gone := context.WithCancel(ctx) // ends when there is nobody to write to
	defer gone()
	unhook := context.AfterFunc(ctx, func() { _ = s.run.Kill() })

	var reader, writer, pumps sync.WaitGroup
	reader.Go(func() { s.read(); gone() })
	writer.Go(func() { s.write(ctx, gone) })
	pumps.Go(func() { s.pump(ctx, "stdout", s.run.Stdout()) })
	if stderr := s.run.Stderr(); stderr != nil {
		pumps.Go(func() { s.pump(ctx, "stderr", stderr) })
	}
	pumps.Wait() // all output is with the writer, or there is nobody to read it
	<-s.run.Done()
	close(s.out)
	writer.Wait()
	unhook()
	if ctx.Err() != nil || !s.exit() {
		_ = s.conn.Close()
	}
	_ = s.run.Stdin().Close() // frees a reader that waits for room in it
	reader.Wait()
}

// exit sends the result and a close frame, to whose answer it leaves the reader some time. An outcome that is not known is an
// error, never an exit code.
func (s *execSession) exit() bool {
	res, err := s.run.Result()
	code, text := websocket.CloseNormalClosure, ""
	if err != nil {
		code, text = websocket.CloseInternalServerErr, "the outcome of the execution is not known"
	} else {
		status := res.ExitCode
		if res.Signal != 0 && status <= 0 {
			status = 128 + res.Signal
		}
		frame := struct {
			Exited bool `json:"exited"`
			Result struct {
				ExitCode int `json:"exit_code,omitempty"`
			} `json:"result"`
			Steps string `json:"rockpool_timeline,omitempty"` // for a caller who has the execution recorded
			Start string `json:"rockpool_start,omitempty"`    // of a program in a task that is kept warm
		}{Exited: true, Start: started(res)}
		if s.call != nil {
			s.span.End()
			frame.Steps = s.call.Top().Steps()
		}
		frame.Result.ExitCode = status
		_ = s.conn.SetWriteDeadline(time.Now().Add(execWrite))
		if s.conn.WriteJSON(frame) != nil {
			return false
		}
	}
	// Were the connection closed while the client is behind, its next sign of life would reset it, and what it has not got yet would be lost.
	now := time.Now()
	return s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), now.Add(execLinger)) == nil &&
		s.conn.SetReadDeadline(now.Add(execDrain)) == nil
}

// started says how a program was started whose task is kept warm.
func started(r driver.ExecResult) string {
	switch {
	case r.Warm:
		return "warm"
	case r.Cold:
		return "cold"
	}
	return ""
}

// write sends frames in order, and a sign of life while there are none.
func (s *execSession) write(ctx context.Context, gone func()) {
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	for {
		frame := []byte("{}")
		select {
		case f, ok := <-s.out:
			if !ok {
				return
			}
			frame = f
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(execWrite))
		if err := s.conn.WriteMessage(websocket.TextMessage, frame); err != nil {
			gone()
			return
		}
	}
}

// pump frames output as it comes. When nobody listens any more it goes on reading, so that the execution can end.
func (s *execSession) pump(ctx context.Context, stream string, r io.Reader) {
	var (
		small [execSmall]byte
		large *[execChunk]byte // while there is more than fits into small
	)
	defer func() {
		if large != nil {
			execChunks.Put(large)
		}
	}()
	from := &paced{from: r, pace: &s.pace, alone: s.alone, gone: ctx.Done()}
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		n, err := from.Read(buf)
		if n > 0 {
			frame := make([]byte, 0, n*4/3+40)
			frame = append(append(append(frame, `{"`...), stream...), `":{"data":"`...)
			frame = base64.StdEncoding.AppendEncode(frame, buf[:n])
			s.send(ctx, append(frame, `"}}`...))
			switch {
			case large == nil && n == execSmall:
				large = execChunks.Get().(*[execChunk]byte)
			case large != nil && n < execSmall:
				execChunks.Put(large)
				large = nil
			}
		}
		if err != nil {
			s.send(ctx, []byte(`{"`+stream+`":{"close":true}}`))
			return
		}
	}
}

func (s *execSession) send(ctx context.Context, frame []byte) {
	select {
	case s.out <- frame:
	case <-ctx.Done():
	}
}

type execInput struct {
	Stdin *struct {
		Data  []byte `json:"data"`
		Close bool   `json:"close"`
	} `json:"stdin"`
	TTYSize *struct {
		Height uint16 `json:"height"`
		Width  uint16 `json:"width"`
	} `json:"tty_size"`
}

// read carries input until the client is gone. While the program takes none, nothing more is read from the client.
func (s *execSession) read() {
	stdin := s.run.Stdin()
	open := true
	for {
		_, frame, err := s.conn.NextReader()
		if err != nil {
			return
		}
		var in execInput
		if json.NewDecoder(frame).Decode(&in) != nil {
			goodbye(s.conn, websocket.ClosePolicyViolation, "failed to decode a frame of input")
			return
		}
		if in.TTYSize != nil {
			_ = s.run.Resize(in.TTYSize.Width, in.TTYSize.Height)
		}
		if in.Stdin == nil || !open {
			continue
		}
		if len(in.Stdin.Data) > 0 {
			if _, err := stdin.Write(in.Stdin.Data); err != nil {
				open = false // the program takes no more; its end is told by its exit
				continue
			}
		}
		if in.Stdin.Close {
			open = false
			_ = stdin.Close()
		}
	}
}
