package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// A restart keeps runner ids, what is used and what is idle, and the files in the runners; it makes no surplus.
func TestRestart(t *testing.T) {
	needRoot(t)
	for name, end := range map[string]func(*service.Service) error{
		"in order":   (*service.Service).Stop,
		"by kill -9": (*service.Service).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			before, err := service.TakeBaseline()
			if err != nil {
				t.Fatal(err)
			}
			ctx, log := bounded(t), &service.Log{}
			o := service.Options{Binary: filepath.Join(binaries, "gateway"), Dir: t.TempDir(), Token: token, Keep: true, Log: log}
			s, err := service.Start(ctx, o)
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the log:\n%s", log)
				}
			})
			checked(t, s)
			provision(ctx, t, s, 10, 2, 64)
			r := claim(ctx, t, s, 10)
			if err := s.Copy(ctx, r, nil, platform.File{Path: "kept.txt", Content: []byte("kept")}); err != nil {
				t.Fatal(err)
			}
			waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 2 && st.UsedRunners == 1 })
			if err := end(s); err != nil {
				t.Fatal(err)
			}

			o.Keep = false // the second one tidies up
			s, err = service.Start(ctx, o)
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			checked(t, s)
			// The first answer comes when the recovery is complete.
			st, err := s.Statistics(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if got := st["10"]; got.UsedRunners != 1 || got.PrewarmingPoolSize != 2 {
				t.Errorf("after the restart: %+v", got)
			}
			waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 2 && st.UsedRunners == 1 })
			if out := run(ctx, t, s, r, "cat kept.txt"); !strings.HasPrefix(out.Stdout, "kept") {
				t.Errorf("the file reads %q, stderr %q", out.Stdout, out.Stderr)
			}
			second := claim(ctx, t, s, 10)
			if second == r {
				t.Error("a runner was handed out twice")
			}
			if out := run(ctx, t, s, second, "echo works"); !strings.Contains(out.Stdout, "works") {
				t.Errorf("an idle runner from before does not work: %+v", out)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
			if left, err := before.Since(); err != nil || len(left) > 0 {
				t.Errorf("left behind: %q %v", left, err)
			}
		})
	}
}

// A restart replays the log, and what is asked meanwhile must not be answered from a part of it. Several restarts, because it is a race.
func TestAClaimedRunnerIsKnownFromTheFirstAnswerOn(t *testing.T) {
	needRoot(t)
	ctx, log := bounded(t), &service.Log{}
	o := service.Options{Binary: filepath.Join(binaries, "gateway"), Dir: t.TempDir(), Token: token, Keep: true, Log: log}
	s, err := service.Start(ctx, o)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	checked(t, s)
	provision(ctx, t, s, 10, 1, 64)
	const restarts = 6
	for i := range restarts {
		r := claim(ctx, t, s, 10)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		o.Keep = i < restarts-1 // the last one tidies up
		if s, err = service.Start(ctx, o); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		checked(t, s)
		if _, err := s.List(ctx, r, "./", true); err != nil {
			t.Errorf("restart %d: the claimed runner answers %v", i+1, err)
		}
		if err := s.Release(ctx, r); err != nil {
			t.Error(err)
		}
		waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 1 && st.UsedRunners == 0 })
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}
