package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/tests/bench/plot"
	"rockpool/tests/bench/report"
	"rockpool/tests/load"
	"rockpool/tests/meter"
	"rockpool/tests/service"
)

// dimension is something that grows, and what is looked at meanwhile.
type dimension struct {
	name   string
	x      string
	steps  []int
	run    func(ctx context.Context, b *bench, steps []int, found func(n int, values ...value) error) error
	panels []panel
}

// value is one figure at one size. Its unit names both, as benchstat knows them: claim-p50-ns.
type value struct {
	unit   string
	number float64
}

// panel draws figures divided by a scale.
type panel struct {
	y     string
	scale float64
	units []string
}

const perMs, perMB, perKB = 1e6, 1 << 20, 1 << 10

var dimensions = []dimension{
	{"runners", "idle runners", []int{10, 100, 1000, 5000}, growRunners, []panel{
		{"ms", perMs, []string{"claim-p50-ns", "claim-p99-ns", "echo-p50-ns", "echo-p99-ns"}}, {"MB", perMB, []string{"gateway-B", "orchestrator-B", "machine-per-runner-B"}}, {"% of a core", 1, []string{"idle-CPU"}},
	}},
	{"environments", "environments, 100 idle runners in all", []int{1, 10, 100}, growEnvironments, []panel{
		{"ms", perMs, []string{"claim-p50-ns", "claim-p99-ns", "unchanged-put-p50-ns", "statistics-p50-ns"}}, {"MB", perMB, []string{"service-B"}},
	}},
	{"executions", "executions that wait", []int{1, 100, 1000}, growExecutions, []panel{
		{"ms", perMs, []string{"stdin-p50-ns", "stdin-p99-ns", "echo-p50-ns", "echo-p99-ns"}}, {"KB", perKB, []string{"service-per-execution-B"}}, {"% of a core", 1, []string{"idle-CPU"}},
	}},
	{"nodes", "simulated nodes", []int{1, 10, 100, 1000, 10_000}, growNodes, []panel{
		{"ms", perMs, []string{"running-p50-ns", "running-p99-ns"}}, {"MB, both ends", perMB, []string{"heap-B"}}, {"cores when idle, both ends", 1, []string{"idle-cores"}},
	}},
}

const growthFile = "growth.txt"

// grow measures what is not in dir yet and draws all that is: it can be ended at any time and begun again.
func (b *bench) grow(ctx context.Context, dir, only string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "rockpool-grow-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	path := filepath.Join(dir, growthFile)
	have, err := readGrowth(path)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if len(have) == 0 {
		machine, err := meter.Describe(b.dir)
		if err != nil {
			return err
		}
		var text strings.Builder
		report.Describe(&text, append(machine.Pairs(), [2]string{"pkg", "rockpool/tests/bench"}))
		if _, err := file.WriteString(text.String()); err != nil {
			return err
		}
	}
	names := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	for _, n := range names {
		if !slices.ContainsFunc(dimensions, func(d dimension) bool { return d.name == n }) {
			return fmt.Errorf("-only: nothing called %q grows; there are runners, environments, executions and nodes", n)
		}
	}
	var failed []error
	for _, d := range dimensions {
		if len(names) > 0 && !slices.Contains(names, d.name) {
			continue
		}
		missing := slices.DeleteFunc(slices.Clone(d.steps), func(n int) bool { return have[key(d.name, n)] != nil || b.most > 0 && n > b.most })
		if len(missing) == 0 || ctx.Err() != nil {
			continue
		}
		others, err := meter.Watch()
		if err != nil {
			return err
		}
		err = d.run(ctx, b, missing, func(n int, values ...value) error {
			crowd, err := others.Others()
			if err != nil {
				return err
			}
			values = append(values, value{"others-cores", crowd})
			line := fmt.Sprintf("Benchmark%s 1", key(d.name, n))
			have[key(d.name, n)] = map[string]float64{}
			for _, v := range values {
				line += fmt.Sprintf(" %.6g %s", v.number, v.unit)
				have[key(d.name, n)][v.unit] = v.number
			}
			fmt.Println(line)
			_, err = file.WriteString(line + "\n")
			return err
		})
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", d.name, err))
		}
	}
	for _, d := range dimensions {
		failed = append(failed, os.WriteFile(filepath.Join(dir, d.name+".svg"), []byte(d.chart(have).SVG()), 0o644))
	}
	return errors.Join(failed...)
}

func key(dimension string, n int) string { return fmt.Sprintf("Grow/%s=%d", dimension, n) }

// readGrowth reads what earlier runs have found, by key and unit.
func readGrowth(path string) (map[string]map[string]float64, error) {
	have := map[string]map[string]float64{}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return have, nil
	}
	for line := range strings.Lines(string(text)) {
		if name, _, units, ok := benchmarkLine(line); ok {
			have[name] = units
		}
	}
	return have, err
}

// chart is what is known of the dimension.
func (d dimension) chart(have map[string]map[string]float64) plot.Chart {
	c := plot.Chart{Title: "Cost with the number of " + d.name, X: d.x}
	for _, p := range d.panels {
		one := plot.Panel{Y: p.y}
		for _, u := range p.units {
			line := plot.Line{Name: strings.TrimSuffix(strings.TrimSuffix(u, "-ns"), "-B")}
			for _, n := range d.steps {
				if v, ok := have[key(d.name, n)][u]; ok {
					line.Points = append(line.Points, plot.Point{X: float64(n), Y: v / p.scale})
				}
			}
			one.Lines = append(one.Lines, line)
		}
		c.Panels = append(c.Panels, one)
	}
	return c
}

// spread are the percentiles of calls.
func spread(name string, calls *load.Samples) []value {
	times := load.Times(calls.Sorted())
	return []value{{name + "-p50-ns", float64(load.Percentile(times, 50))}, {name + "-p99-ns", float64(load.Percentile(times, 99))}}
}

// inService measures a gateway that was started for it.
func (b *bench) inService(ctx context.Context, name string, env []string, f func() error) error {
	return b.withService(ctx, name, env, func(s *service.Service) error {
		b.service, b.Client = s, s.Client
		return f()
	})
}

// growRunners lets the pool of one environment grow on one node, which says that it has more memory than it may have, as idle runners need less than they reserve.
func growRunners(ctx context.Context, b *bench, steps []int, found func(int, ...value) error) error {
	template, err := b.smallTemplate()
	if err != nil {
		return err
	}
	config := filepath.Join(b.dir, "node.hcl")
	text := fmt.Sprintf(`
data_dir = %q
ports {
  http = 0
}
server {
  enabled = true
  bootstrap_expect = 1
}
client {
  enabled = true
  on_stop = "remove"
  memory_total_mb = 65536
  cpu_total_compute = 65536
  network {
    range = ""
  }
}
`, filepath.Join(b.dir, "node"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	return withOrchestrator(ctx, b, func(o *orchestrator) error {
		return b.inService(ctx, "runners", []string{"ROCKPOOL_SERVER_TEMPLATEJOBFILE=" + template, "ROCKPOOL_NOMAD_ADDRESS=" + o.url}, func() error {
			free, err := meter.Available()
			if err != nil {
				return err
			}
			for _, n := range steps {
				if err := b.PutEnvironment(ctx, env, smallEnvironment(uint(n))); err != nil {
					return err
				}
				if err := b.waitIdle(ctx, uint(n)); err != nil {
					return err
				}
				values, err := b.manyRunners(ctx, o, n, free)
				if err != nil {
					return err
				}
				if err := found(n, values...); err != nil {
					return err
				}
			}
			return nil // the node removes them at its end, in its own time
		})
	}, "-config", config)
}

// visible is how many runners there have to be for the memory of each to show in that of the machine, which changes by some hundred MB by itself.
const visible = 1000

func (b *bench) manyRunners(ctx context.Context, o *orchestrator, n int, free int64) ([]value, error) {
	left, err := meter.Available()
	if err != nil {
		return nil, err
	}
	before, err := meter.CPU(o.pid)
	if err != nil {
		return nil, err
	}
	const quiet = 4 * time.Second
	idle, err := b.share(ctx, quiet)
	if err != nil {
		return nil, err
	}
	after, err := meter.CPU(o.pid)
	if err != nil {
		return nil, err
	}
	gateway, err := meter.Resident(b.service.PID())
	if err != nil {
		return nil, err
	}
	cluster, err := meter.Resident(o.pid)
	if err != nil {
		return nil, err
	}
	claims, echoes := &load.Samples{}, &load.Samples{}
	for range 4 { // few at a time, so that the pool is nearly full
		if err := b.someOf(ctx, uint(n), min(n/2, 10), claims, echoes); err != nil {
			return nil, err
		}
	}
	values := append(append(spread("claim", claims), spread("echo", echoes)...), value{"gateway-B", float64(gateway)}, value{"orchestrator-B", float64(cluster)},
		value{"idle-CPU", idle + 100*(after-before).Seconds()/quiet.Seconds()})
	if n >= visible {
		values = append(values, value{"machine-per-runner-B", float64(free-left) / float64(n)})
	}
	return values, nil
}

// growEnvironments shares a hundred runners among more and more environments.
func growEnvironments(ctx context.Context, b *bench, steps []int, found func(int, ...value) error) error {
	const all = 100
	return b.inService(ctx, "environments", nil, func() error {
		for _, n := range steps {
			for i := range n {
				if err := b.PutEnvironment(ctx, env+i, smallEnvironment(all/uint(n))); err != nil {
					return err
				}
			}
			for i := range n {
				if err := b.waitIdleOf(ctx, env+i, all/uint(n)); err != nil {
					return err
				}
			}
			resident, err := meter.Resident(b.service.PID())
			if err != nil {
				return err
			}
			var claims, puts, lists load.Samples
			for i := range 100 {
				id := env + i%n
				start := time.Now()
				r, err := b.Claim(ctx, id, time.Minute)
				if err != nil {
					return err
				}
				claims.Since(start)
				if err := errors.Join(b.once(r), b.Release(ctx, r), b.waitIdleOf(ctx, id, all/uint(n))); err != nil {
					return err
				}
				start = time.Now()
				if err := b.PutEnvironment(ctx, id, smallEnvironment(all/uint(n))); err != nil {
					return err
				}
				puts.Since(start)
				start = time.Now()
				s, err := b.Statistics(ctx)
				if err != nil || len(s) != n {
					return fmt.Errorf("%d environments are told of %d, %v", len(s), n, err)
				}
				lists.Since(start)
			}
			values := append(append(append(spread("claim", &claims), spread("unchanged-put", &puts)...), spread("statistics", &lists)...), value{"service-B", float64(resident)})
			if err := found(n, values...); err != nil {
				return err
			}
			for i := range n {
				if err := b.DeleteEnvironment(ctx, env+i); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// growExecutions looks at one execution more beside those that wait.
func growExecutions(ctx context.Context, b *bench, steps []int, found func(int, ...value) error) error {
	return b.inService(ctx, "executions", nil, func() error {
		if err := b.resize(ctx, pool); err != nil {
			return err
		}
		for _, n := range steps {
			r, err := b.claim(ctx)
			if err != nil {
				return err
			}
			before, err := meter.Resident(b.service.PID())
			if err != nil {
				return err
			}
			leave, err := b.waiting(ctx, n)
			if err == nil {
				err = b.besideOthers(ctx, r, n, before, found)
			}
			if err := errors.Join(err, leave(), b.Release(ctx, r)); err != nil {
				return err
			}
			if err := b.waitIdle(ctx, pool); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) besideOthers(ctx context.Context, runner string, n int, before int64, found func(int, ...value) error) error {
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	after, err := meter.Resident(b.service.PID())
	if err != nil {
		return err
	}
	idle, err := b.share(ctx, 4*time.Second)
	if err != nil {
		return err
	}
	trips, err := b.roundTrips(ctx, runner, 500)
	if err != nil {
		return err
	}
	var echoes load.Samples
	for range 100 {
		start := time.Now()
		if _, err := b.echo(ctx, runner); err != nil {
			return err
		}
		echoes.Since(start)
	}
	return found(n, append(append(spread("stdin", trips), spread("echo", &echoes)...), value{"service-per-execution-B", float64(after-before) / float64(n)}, value{"idle-CPU", idle})...)
}

// growNodes is a benchmark of the simulation.
func growNodes(ctx context.Context, b *bench, steps []int, found func(int, ...value) error) error {
	for _, n := range steps {
		out, err := b.goTest(ctx, []string{"GOGC=200"}, "-run", "^$", "-bench", fmt.Sprintf("^BenchmarkNodes$/^%d$", n), "-benchtime", "200x", "./internal/orchestrator/sim")
		if err != nil {
			return err
		}
		ok := false
		for line := range strings.Lines(out) {
			name, _, of, is := benchmarkLine(line)
			if !is || name != "Nodes/"+strconv.Itoa(n) {
				continue
			}
			ok = true
			if err := found(n, value{"running-p50-ns", 1000 * of["µs-p50"]}, value{"running-p99-ns", 1000 * of["µs-p99"]}, value{"heap-B", 1024 * of["KB-held"]},
				value{"idle-cores", of["idle-cores"]}); err != nil {
				return err
			}
		}
		if !ok {
			return fmt.Errorf("the benchmark of %d nodes did not run:\n%s", n, out)
		}
	}
	return nil
}
