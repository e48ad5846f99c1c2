package serve

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const chunk, total = 32 << 10, 64 << 20
	for name, c := range map[string]struct {
		alone bool
		want  time.Duration // that it takes
	}{
		"alone":       {true, 0},
		"with others": {false, (total - paceBurst) * time.Second / paceRate},
	} {
		var p pace
		began := time.Unix(1000, 0)
		now := began
		for range total / chunk {
			now = now.Add(p.hold(chunk, c.alone, now))
		}
		if took := now.Sub(began); took < c.want-paceStep || took > c.want+paceStep {
			t.Errorf("%s: %v, want %v", name, took, c.want)
		}
	}
	var p pace
	now := time.Unix(1000, 0)
	p.hold(1<<30, true, now)
	if d := p.hold(chunk, false, now); d != 0 {
		t.Errorf("what it sent alone is held against it: %v", d)
	}
	p.hold(paceBurst, false, now)
	if d := p.hold(chunk, false, now.Add(time.Hour)); d != 0 {
		t.Errorf("one that was quiet is held back: %v", d)
	}
}
