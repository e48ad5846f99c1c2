package command_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

func serverLog() []any {
	return []any{
		&command.AutopilotConfig{Now: 10, Config: &state.Autopilot{CleanupDeadServers: true, LastContactThreshold: time.Second, MaxTrailingLogs: 5, MinQuorum: 3}},
		&command.IntroductionKey{Now: 20, Key: &state.IntroductionKey{ID: "k1", Seed: []byte("01234567890123456789012345678901")}},
		&command.NodeIntroduce{Now: 30, Token: "t1", Expires: 1000, Node: &model.Node{ID: "n1", SecretID: "s1", Name: "one", Status: model.NodeReady}},
	}
}

func golden(t *testing.T, file, got string) string {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(want)
}

func TestEntriesAboutServersAreWhatIsOnDisks(t *testing.T) {
	var got strings.Builder
	s := state.New()
	for i, e := range serverLog() {
		data, err := command.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		got.WriteString(hex.EncodeToString(data) + "\n")
		apply(t, s, uint64(i+1), e)
	}
	var snap bytes.Buffer
	if err := s.Snapshot().Persist(&snap); err != nil {
		t.Fatal(err)
	}
	got.WriteString(hex.EncodeToString(snap.Bytes()) + "\n")
	if want := golden(t, "testdata/servers.golden", got.String()); got.String() != want {
		t.Errorf("entries or the snapshot differ from the golden file: old ones could not be read any more\n%s", got.String())
	}
	restored := state.New()
	if err := restored.Restore(&snap); err != nil {
		t.Fatal(err)
	}
	a, _ := s.Hash()
	if b, _ := restored.Hash(); a != b {
		t.Error("the hash differs after a restore")
	}
}

// A snapshot and a log that the first program wrote can be read, and what follows is applied to them.
func TestWhatTheFirstProgramWrote(t *testing.T) {
	s := state.New()
	data, err := os.ReadFile("testdata/snapshot-1.golden")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	snap := s.Snapshot()
	if snap.Index() == 0 || snap.Job(nil, "default", "j2") == nil || snap.Node(nil, "n1") == nil {
		t.Error("the snapshot is not what it was")
	}
	log, err := os.ReadFile("testdata/log-1.golden")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		entry, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := command.Apply(s, s.Index()+1, entry); err != nil {
			t.Errorf("%.40s: %v", line, err)
		}
	}
}

func TestNewerVersionsOfEntriesStopTheServer(t *testing.T) {
	for _, e := range append(log(), serverLog()...) {
		data, err := command.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []byte{0, 200} {
			data[1] = version
			if _, err := command.Apply(state.New(), 1, data); err == nil {
				t.Errorf("%T in version %d is applied", e, version)
			}
		}
	}
}

func TestTheGateOfARollingUpgrade(t *testing.T) {
	known := command.Known()
	for _, e := range append(log(), serverLog()...) {
		if !command.Covers(known, e) {
			t.Errorf("this program does not know its own %s: %s", command.Describe(e), known)
		}
	}
	job, autopilot := log()[1], serverLog()[0]
	for _, c := range []struct {
		known          string
		job, autopilot bool
	}{
		{"1-11", true, false},
		{"", true, false}, // one that says nothing knows what the first program knew
		{"1-11,20", true, true},
		{"1-11,12-30", true, true},
		{"1-11,20.2", true, true},
		{"1-11,120", true, false},
		{"1-11,x-y,20-", true, false},
		{"1-11,21-22", true, false},
	} {
		if command.Covers(c.known, job) != c.job || command.Covers(c.known, autopilot) != c.autopilot {
			t.Errorf("%q: job %v, autopilot %v", c.known, command.Covers(c.known, job), command.Covers(c.known, autopilot))
		}
	}
	if !command.Original(job) || command.Original(autopilot) {
		t.Error("what the first program knows is mixed up")
	}
}

func TestATokenIntroducesOneNode(t *testing.T) {
	s := state.New()
	node := func(id, secret string) *model.Node {
		return &model.Node{ID: id, SecretID: secret, Name: id, Status: model.NodeReady}
	}
	index := uint64(0)
	do := func(now int64, token string, n *model.Node) error {
		index++
		err, _ := apply(t, s, index, &command.NodeIntroduce{Now: now, Token: token, Expires: 100, Node: n}).(error)
		return err
	}
	if err := do(1, "t", node("a", "s")); err != nil {
		t.Fatal(err)
	}
	if err := do(2, "t", node("a", "s")); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	if err := do(3, "t", node("b", "s")); !fault.Is(err, fault.Forbidden) {
		t.Errorf("another node: %v", err)
	}
	if err := do(4, "u", node("a", "other")); !fault.Is(err, fault.Forbidden) {
		t.Errorf("another secret: %v", err)
	}
	if err := do(200, "v", node("c", "s")); err != nil {
		t.Fatal(err)
	}
	if s.Snapshot().Introduced("t") != "" || s.Snapshot().Introduced("v") != "c" {
		t.Error("tokens that have expired are not forgotten, or others are")
	}
}
