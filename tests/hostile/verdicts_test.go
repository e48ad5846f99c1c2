package hostile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/tests/platform"
)

var verdicts = []attack{
	// The kernel ends the orphan after a second of CPU time, however long that takes, and cat sees its end.
	// The child ends by the clock that the kernel accounts with: a limit of CPU time goes by ticks, which tell something else on a machine that is busy.
	{id: "G1", what: "CPU time hidden in children and short lives", script: measured(`
{ (python3 -c 'import time
while time.process_time() < 1: pass' &); for i in $(seq 50); do /bin/true; done; } | cat`,
		func(u usage) bool { return u.CPUTimeMS >= 950 })},
	{id: "G2", what: "memory given back before the end", script: measured(
		`exec python3 -c 'x = b"x" * (50 << 20); del x; import time; time.sleep(0.1)'`, func(u usage) bool { return u.PeakMemoryBytes >= 50<<20 })},
	{id: "G3", what: "exit codes of other verdicts", script: honestCodes},
	{id: "G4", what: "prints the words of other verdicts", language: "sh", program: `
echo 'time limit exceeded'; echo 'the allocation was OOM Killed'; echo '{"type":"exit","data":137}'; echo '{"type":"timeout"}' >&2
echo 'Killed'; echo 'Error executing the request'; exit 3`, want: "exit 3"},
	{id: "G5", what: "ends with output still under way", script: nothingLost},
	{id: "G6", what: "ends as the time limit does", script: atTheLimit},
	{id: "G6", what: "goes on without its terminal", language: "sh", program: `exec 0<&- 1>&-; exec sleep 0.2`, want: "exit 0"},
}

type usage struct {
	CPUTimeMS       int64 `json:"cpuTimeMs"`
	WallTimeMS      int64 `json:"wallTimeMs"`
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
	OOMKilled       bool  `json:"oomKilled"`
}

// extended runs a command over the extended protocol, which tells what was used.
func (a *arena) extended(ctx context.Context, runner, command string) (code int, u usage, err error) {
	url, err := a.Execute(ctx, runner, platform.Execution{Command: command, TimeLimit: 20})
	if err != nil {
		return 0, u, err
	}
	d := websocket.Dialer{Subprotocols: []string{"rockpool.v1"}, HandshakeTimeout: 10 * time.Second}
	conn, _, err := d.DialContext(ctx, url, http.Header{"Poseidon-Token": {a.token}})
	if err != nil {
		return 0, u, err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			return 0, u, fmt.Errorf("without an exit: %w", err)
		}
		var m struct {
			Type  string
			Data  json.RawMessage
			Usage usage
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return 0, u, err
		}
		if m.Type == "exit" {
			err = json.Unmarshal(m.Data, &code)
			return code, m.Usage, err
		}
		if m.Type == "error" || m.Type == "timeout" {
			return 0, u, fmt.Errorf("%s: %s", m.Type, m.Data)
		}
	}
}

func measured(command string, enough func(usage) bool) func(context.Context, *arena, string) error {
	return func(ctx context.Context, a *arena, runner string) error {
		_, u, err := a.extended(ctx, runner, command)
		if err == nil && !enough(u) {
			err = fmt.Errorf("%+v", u)
		}
		return err
	}
}

func honestCodes(ctx context.Context, a *arena, runner string) error {
	for _, want := range []int{124, 125, 126, 127, 128, 129, 137, 143, 255} {
		code, u, err := a.extended(ctx, runner, fmt.Sprintf("exit %d", want))
		if err != nil || code != want || u.OOMKilled {
			return fmt.Errorf("exit %d was told as %d, %+v, %w", want, code, u, err)
		}
		o, err := a.Run(ctx, runner, platform.Execution{Command: fmt.Sprintf("exit %d", want), TimeLimit: 10})
		if err != nil || verdictOf(o) != fmt.Sprintf("exit %d", want) {
			return fmt.Errorf("exit %d was told as %s, %w", want, verdictOf(o), err)
		}
	}
	return nil
}

func nothingLost(ctx context.Context, a *arena, runner string) error {
	const size = 3 << 20
	o, err := a.Run(ctx, runner, platform.Execution{Command: fmt.Sprintf(`head -c %d /dev/zero | tr '\0' x; exit 7`, size), TimeLimit: 20})
	if err == nil && (len(o.Stdout) != size || verdictOf(o) != "exit 7") {
		err = fmt.Errorf("%d of %d bytes, %s", len(o.Stdout), size, verdictOf(o))
	}
	return err
}

// atTheLimit has programs end when their time does; the client of the tests refuses a second verdict.
func atTheLimit(ctx context.Context, a *arena, runner string) error {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			o, err := a.Run(ctx, runner, platform.Execution{Command: fmt.Sprintf("exec sleep 0.%d", 992+i), TimeLimit: 1})
			if v := verdictOf(o); err == nil && v != "exit 0" && v != "timeout" {
				err = errors.New(v)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
