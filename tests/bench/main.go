// Command bench measures a gateway by URL, an orchestrator alone, and by Go's benchmarks what cannot be seen from outside, and prints one table: budget, measured,
// held or not. It starts the services itself unless -url names one. Answers are checked as they come: a wrong one ends the scenario.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"rockpool/tests/bench/report"
	"rockpool/tests/load"
	"rockpool/tests/meter"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

func main() {
	var b bench
	flag.StringVar(&b.url, "url", "", "a running gateway; empty = start one")
	flag.StringVar(&b.token, "token", "bench", "its token")
	flag.StringVar(&b.gateway, "gateway", "bin/gateway", "the gateway's binary")
	flag.StringVar(&b.orchestrator, "orchestrator", "bin/orchestrator", "the orchestrator's binary")
	flag.IntVar(&b.n, "n", 200, "samples of each figure of one call at a time")
	flag.DurationVar(&b.during, "for", 10*time.Second, "how long each load is held")
	flag.UintVar(&b.runners, "density", 2000, "idle runners on one node")
	flag.StringVar(&b.out, "out", "", "also write what was measured to this file, in Go's benchmark format")
	only := flag.String("only", "", "the scenarios to run, such as claim,many; empty = all. -list names them")
	list := flag.Bool("list", false, "name the scenarios")
	grow := flag.String("grow", "", "measure cost as work grows, keep what was measured in this directory and draw it; what is there already is not measured again")
	flag.IntVar(&b.most, "most", 0, "with -grow: the largest size that is measured; 0 = all")
	flag.Parse()
	if *list {
		for _, s := range scenarios {
			fmt.Println(s.name)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return b.main(ctx, *only, os.Stdout) }
	if *grow != "" {
		run = func() error { return b.grow(ctx, *grow, *only) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// scenario is a part of a run.
type scenario struct {
	name string
	need need
	run  func(context.Context, *bench) error

	figures []string // that it adds, by key
}

// bench is one run.
type bench struct {
	*platform.Client
	service      *service.Service // nil when somebody else's gateway is measured
	dir          string           // of this run
	url, token   string
	gateway      string
	orchestrator string
	n            int
	during       time.Duration
	runners      uint
	out          string
	most         int

	load  *meter.Load // since the scenario began
	table report.Table
	raw   strings.Builder // lines of Go's own benchmarks

	mu   sync.Mutex
	seen map[string]bool // guarded by mu; every runner that was handed out
}

// main measures and prints. A scenario that fails leaves its rows out, says so there, and the others go on; the run fails in the end.
func (b *bench) main(ctx context.Context, only string, w io.Writer) (err error) {
	b.table = report.Table{Figures: named(b.runners), Found: map[string]*report.Measurement{}, Missing: map[string]string{}, Why: "its scenario did not run"}
	names := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	if only != "" {
		b.table.Why = ""
	}
	for _, n := range names {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == n }) {
			return fmt.Errorf("-only: there is no scenario %q; -list names them", n)
		}
	}
	if b.dir, err = os.MkdirTemp("", "rockpool-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	machine, err := meter.Describe(b.dir)
	if err != nil {
		return err
	}
	whole, err := meter.Watch()
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(slices.Clone(scenarios), func(s scenario) bool { return len(names) > 0 && !slices.Contains(names, s.name) })
	began, failed := time.Now(), b.all(ctx, chosen)
	others, err := whole.Others()
	if err != nil {
		return err
	}
	description := append(machine.Pairs(), [2]string{"date", began.UTC().Format(time.RFC3339)}, [2]string{"others", fmt.Sprintf("%.2f cores on average over %v", others, time.Since(began).Round(time.Second))})
	fmt.Fprintln(w)
	for _, p := range description {
		fmt.Fprintf(w, "%s: %s\n", p[0], p[1])
	}
	fmt.Fprintln(w)
	err = b.table.Markdown(w)
	if b.out != "" {
		err = errors.Join(err, b.write(description))
	}
	return errors.Join(failed, err)
}

// write makes the copy for machines.
func (b *bench) write(description [][2]string) error {
	f, err := os.Create(b.out)
	if err != nil {
		return err
	}
	err = b.table.Format(f, append(description, [2]string{"pkg", "rockpool/tests/bench"}))
	if err == nil {
		_, err = f.WriteString(b.raw.String())
	}
	return errors.Join(err, f.Close())
}

// all runs scenarios in order: first those that share a gateway, then those that have the machine to themselves.
func (b *bench) all(ctx context.Context, chosen []scenario) error {
	var failed []error
	run := func(s scenario) error {
		fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), s.name)
		var err error
		if b.load, err = meter.Watch(); err == nil {
			err = s.run(ctx, b)
		}
		if err != nil {
			for _, key := range s.figures {
				if b.table.Missing[key] == "" {
					b.table.Missing[key] = "its scenario failed"
				}
			}
			err = fmt.Errorf("%s: %w", s.name, err)
		}
		return err
	}
	shared := slices.DeleteFunc(slices.Clone(chosen), func(s scenario) bool { return s.need == needNothing })
	if len(shared) > 0 {
		failed = append(failed, b.withGateway(ctx, func() error {
			var failed []error
			if shared[0].name != "provision" {
				shared = append([]scenario{scenarios[0]}, shared...)
			}
			for _, s := range shared {
				if s.need == needService && b.service == nil {
					continue // somebody else's process cannot be looked at
				}
				failed = append(failed, run(s))
			}
			return errors.Join(failed...)
		}))
	}
	for _, s := range chosen {
		if s.need == needNothing && ctx.Err() == nil {
			failed = append(failed, run(s))
		}
	}
	return errors.Join(failed...)
}

// withGateway calls f while there is one.
func (b *bench) withGateway(ctx context.Context, f func() error) error {
	if b.url != "" {
		b.Client = platform.New(b.url, b.token)
		return f()
	}
	return b.withService(ctx, "shared", nil, func(s *service.Service) error {
		b.service, b.Client = s, s.Client
		defer func() { b.service, b.Client = nil, nil }()
		return f()
	})
}

// withService starts a gateway with more description, calls f, and stops it.
func (b *bench) withService(ctx context.Context, name string, more []string, f func(*service.Service) error) error {
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	bin, err := filepath.Abs(b.gateway)
	if err != nil {
		return err
	}
	s, err := service.Start(ctx, service.Options{Binary: bin, Dir: filepath.Join(b.dir, name), Token: b.token, Log: log, Env: more})
	if err == nil {
		err = errors.Join(f(s), s.Stop())
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		err = fmt.Errorf("%w; the end of its log:\n%s", err, text[max(0, len(text)-2000):])
	}
	return err
}

// add notes what was found of a figure of the catalogue.
func (b *bench) add(key string, m report.Measurement) error {
	if !slices.ContainsFunc(catalogue, func(f report.Figure) bool { return f.Key == key }) {
		return fmt.Errorf("the catalogue has no figure %q", key)
	}
	others, err := b.load.Others()
	if err != nil {
		return err
	}
	m.Others = others
	b.table.Found[key] = &m
	return nil
}

// addCalls notes calls.
func (b *bench) addCalls(key string, begin time.Time, calls *load.Samples) error {
	return b.add(key, report.Measurement{Begin: begin, Calls: calls.Sorted()})
}

// addValue notes one number.
func (b *bench) addValue(key string, value float64) error {
	return b.add(key, report.Measurement{Value: value})
}
