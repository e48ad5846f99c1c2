// Command bench drives a gateway by URL, and an orchestrator alone, and prints what each step takes: p50, p90, p99 and rate, beside the budget.
// It starts the services itself unless -url names one. Answers are checked as they come: a wrong one ends the run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rockpool/tests/load"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

func main() {
	var b bench
	url := flag.String("url", "", "a running gateway; empty = start one")
	token := flag.String("token", "", "its token")
	flag.StringVar(&b.gateway, "gateway", "bin/gateway", "the gateway's binary")
	flag.StringVar(&b.orchestrator, "orchestrator", "bin/orchestrator", "the orchestrator's binary")
	flag.IntVar(&b.n, "n", 100, "samples of each figure")
	flag.DurationVar(&b.churn, "churn", 5*time.Second, "how long runners are claimed and destroyed in a row")
	only := flag.String("only", "", "the scenarios to run after the pool was filled, such as many,manyCycles; empty = all")
	density := flag.Uint("density", 2000, "idle runners on one node; 0 = leave that out")
	rates := flag.String("control", "", "measure the orchestrator's control plane alone, at these rates of jobs a second, such as 500,2000")
	during := flag.Duration("for", 10*time.Second, "how long each rate of -control is held")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *rates != "" {
		if err := b.control(ctx, *rates, *during); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := b.main(ctx, *url, *token, *only, *density); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	*platform.Client
	service      *service.Service // nil when somebody else's gateway is measured
	gateway      string
	orchestrator string
	n            int
	churn        time.Duration
	table        []figure
}

func (b *bench) main(ctx context.Context, url, token, only string, density uint) error {
	var dir string
	if url == "" {
		var err error
		dir, err = os.MkdirTemp("", "rockpool-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			return err
		}
		defer log.Close()
		bin, err := filepath.Abs(b.gateway)
		if err != nil {
			return err
		}
		s, err := service.Start(ctx, service.Options{Binary: bin, Dir: filepath.Join(dir, "data"), Token: "bench", Log: log})
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w\n%s", err, text)
		}
		defer func() {
			if err := s.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
		}()
		b.service, b.Client = s, s.Client
	} else {
		b.Client = platform.New(url, token)
	}
	for i, s := range scenarios {
		if i > 0 && only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			b.print()
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := b.density(ctx, dir, density); err != nil {
		b.print()
		return err
	}
	b.print()
	return nil
}

// control is a run of -control.
func (b *bench) control(ctx context.Context, rates string, during time.Duration) error {
	var list []float64
	for r := range strings.SplitSeq(rates, ",") {
		rate, err := strconv.ParseFloat(r, 64)
		if err != nil || rate <= 0 {
			return fmt.Errorf("-control: %q is no rate", r)
		}
		list = append(list, rate)
	}
	err := control(ctx, b, list, during)
	b.print()
	return err
}

// figure is one row of the table.
type figure struct {
	name    string
	budget  time.Duration // of the p50; 0 = none
	tail    time.Duration // budget of the p99; 0 = none
	least   float64       // budget of the rate; 0 = none
	most    float64       // budget of value; 0 = none
	value   float64
	samples []time.Duration
	rate    float64 // a second; 0 = not a rate
	text    string  // instead of percentiles
}

func (b *bench) add(f figure) { b.table = append(b.table, f) }

func (b *bench) print() {
	fmt.Printf("\n%s, %d cores, %s/%s, %s\n\n", cpuModel(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Println("| figure | budget p50 | p50 | p90 | p99 | rate | n | held |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, f := range b.table {
		budget, held, rate := "", "", ""
		p50, p90, p99 := load.Percentile(f.samples, 50), load.Percentile(f.samples, 90), load.Percentile(f.samples, 99)
		if f.budget > 0 {
			budget = ms(f.budget)
		}
		if f.tail > 0 {
			budget += ", p99 " + ms(f.tail)
		}
		if f.least > 0 {
			budget = strings.TrimPrefix(fmt.Sprintf("%s, %.0f/s", budget, f.least), ", ")
		}
		if f.most > 0 {
			budget = fmt.Sprintf("%g", f.most)
		}
		if budget != "" {
			held = "yes"
			if f.budget > 0 && p50 > f.budget || f.tail > 0 && p99 > f.tail || f.rate < f.least || f.most > 0 && f.value > f.most {
				held = "**no**"
			}
		}
		if f.rate > 0 {
			rate = fmt.Sprintf("%.1f/s", f.rate)
		}
		if f.text != "" {
			fmt.Printf("| %s | %s | %s | | | %s | %d | %s |\n", f.name, budget, f.text, rate, len(f.samples), held)
			continue
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s | %d | %s |\n", f.name, budget, ms(p50), ms(p90), ms(p99), rate, len(f.samples), held)
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for l := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown processor"
}
