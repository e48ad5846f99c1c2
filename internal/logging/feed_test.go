package logging_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"rockpool/internal/logging"
)

func TestAFollowerMayHearMoreThanTheOutput(t *testing.T) {
	var out strings.Builder
	log, feed, err := logging.NewFeed(&out, "info", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("nobody hears this")
	s, err := feed.Follow("debug", true)
	if err != nil {
		t.Fatal(err)
	}
	log.WithField("k", "a\nb").Debug("a step")
	log.Info("a change")
	for _, want := range []string{`"msg":"a step"`, `"msg":"a change"`} {
		line, dropped, err := s.Next(t.Context())
		if err != nil || dropped != 0 || !strings.Contains(string(line), want) || strings.Count(string(line), "\n") != 1 {
			t.Errorf("got %q, %d, %v; want %s", line, dropped, err, want)
		}
	}
	s.Close()
	log.Debug("nobody hears this")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "a change") {
		t.Errorf("the output got %q", got)
	}
	if err := feed.SetLevel("debug"); err != nil {
		t.Fatal(err)
	}
	log.Debug("now it is heard")
	if !strings.Contains(out.String(), "now it is heard") {
		t.Errorf("the output got %q", out.String())
	}
	if err := feed.SetLevel("loud"); err == nil {
		t.Error("a level that does not exist was taken")
	}
}

func TestASlowFollowerIsToldWhatItMissed(t *testing.T) {
	var out strings.Builder
	log, feed, err := logging.NewFeed(&out, "info", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := feed.Follow("info", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const lines = 1000
	for range lines {
		log.Info("a line")
	}
	if strings.Count(out.String(), "\n") != lines {
		t.Error("a slow follower held up the output")
	}
	got, missed := 0, int64(0)
	ctx, cancel := context.WithCancel(t.Context())
	for got+int(missed) < lines {
		_, n, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got, missed = got+1, missed+n
	}
	cancel()
	if _, _, err := s.Next(ctx); got == lines || !errors.Is(err, context.Canceled) {
		t.Errorf("%d lines came, %d were missed, then %v", got, missed, err)
	}
}
