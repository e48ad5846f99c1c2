package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rockpool/tests/bench/report"
)

// suite is a run of Go's benchmarks in one package, for what cannot be seen from outside.
type suite struct {
	pkg, pattern, times string
	env                 []string
	rows                []row
	as                  string // what its only benchmark is called in the copy for machines, where it is run for several figures; "" = as it is
}

// row says which figure a benchmark's line is for.
type row struct {
	benchmark, key string
	make           func(n int, of map[string]float64) report.Measurement // of the line's units
}

func micros(v float64) time.Duration { return time.Duration(v * float64(time.Microsecond)) }

// taken are the percentiles that the benchmarks of sandboxes report.
func taken(n int, of map[string]float64) report.Measurement {
	return report.Measurement{Count: n, P50: micros(of["µs-p50"]), P99: micros(of["µs-p99"])}
}

func unit(name string) func(int, map[string]float64) report.Measurement {
	return func(_ int, of map[string]float64) report.Measurement { return report.Measurement{Value: of[name]} }
}

func sandboxes(ctx context.Context, b *bench) error {
	offered := strconv.Itoa(int(b.during.Seconds() * more * 200))
	return errors.Join(
		b.goBench(ctx, suite{pkg: "./internal/sandbox", pattern: "^(CreateDestroy|ExecTrue|ExecTrueAfterAPause)$", times: "400x", rows: []row{
			{"CreateDestroy", "SandboxCreate", taken}, {"ExecTrue", "ExecTrue", taken}, {"ExecTrueAfterAPause", "ExecTruePaused", taken},
		}}),
		b.goBench(ctx, suite{pkg: "./internal/sandbox", pattern: "^(ManyAtOnce)$", times: "1000x", rows: []row{
			{"ManyAtOnce", "SandboxesMost", func(n int, of map[string]float64) report.Measurement {
				return report.Measurement{Count: n, Rate: of["sandboxes/s"]}
			}},
		}}),
		b.goBench(ctx, suite{pkg: "./internal/sandbox", pattern: "^(Offered)$", times: offered + "x", rows: []row{
			{"Offered", "SandboxesOffered", func(n int, of map[string]float64) report.Measurement {
				m := taken(n, of)
				m.Rate = of["sandboxes/s"]
				return m
			}},
		}}),
		b.goBench(ctx, suite{pkg: "./internal/sandbox", pattern: "^(Stream|Idle)$", times: "20x", rows: []row{{"Stream", "Stream", unit("MB/s")}, {"Idle", "SandboxIdle", unit("MiB")}}}),
	)
}

func simulated(ctx context.Context, b *bench) error {
	jobs := strconv.Itoa(int(b.during.Seconds() * jobRate))
	return errors.Join(
		b.goBench(ctx, suite{pkg: "./internal/orchestrator/sim", pattern: "^(Sustained)$/^(2000)$", times: jobs + "x", env: []string{"GOGC=200"}, rows: []row{
			{"Sustained/2000", "JobsSimulated", func(n int, of map[string]float64) report.Measurement {
				ms := func(unit string) time.Duration { return micros(1000 * of[unit]) }
				return report.Measurement{Count: n, P50: ms("p50-ms"), P99: ms("p99-ms"), Rate: jobRate * (1 - of["refused"]/float64(n)), Note: fmt.Sprintf("%.0f refused, %.0f µs of CPU each", of["refused"], of["cpu-µs/job"])}
			}},
		}}),
		b.bulk(ctx, "BulkFirst"),
		b.bulk(ctx, "Bulk"),
		b.goBench(ctx, suite{pkg: "./internal/orchestrator/sim", pattern: "^(Idle)$", times: "1x", env: []string{"GOGC=200"}, rows: []row{{"Idle", "IdleNodes", unit("cores")}}}),
	)
}

// bulk places a million. It is asked twice: a process that asks for 6 GB the first time waits for the machine below the kernel, where there is one, to find them.
func (b *bench) bulk(ctx context.Context, key string) error {
	const placements = 1_000_000
	return b.goBench(ctx, suite{pkg: "./internal/orchestrator/sim", pattern: "^(Bulk)$", times: "1x", env: []string{"GOGC=200", "ROCKPOOL_BULK_NODES=10000", "ROCKPOOL_BULK_JOBS=1000"}, as: key, rows: []row{
		{"Bulk", key, func(_ int, of map[string]float64) report.Measurement {
			return report.Measurement{Value: placements / of["placements/s"], Note: fmt.Sprintf("%.0f a second, %.0f µs of CPU each, %.0f of them the kernel's",
				of["placements/s"], of["cpu-µs/placement"], of["kernel-µs/placement"])}
		}},
	}})
}

// goBench runs a suite. Its lines go into the copy for machines as they are.
func (b *bench) goBench(ctx context.Context, s suite) error {
	pattern := "^Benchmark" + strings.TrimPrefix(s.pattern, "^")
	out, err := b.goTest(ctx, s.env, "-run", "^$", "-bench", pattern, "-benchtime", s.times, "-timeout", "20m", s.pkg)
	if err != nil {
		for _, r := range s.rows {
			b.table.Missing[r.key] = "the benchmark failed"
		}
		return err
	}
	b.raw.WriteString("\n")
	found := map[string]bool{}
	for line := range strings.Lines(out) {
		switch _, figures, ok := strings.Cut(line, "-"); {
		case strings.HasPrefix(line, "Benchmark") && ok && s.as != "":
			b.raw.WriteString("Benchmark" + s.as + "-" + figures)
		case strings.HasPrefix(line, "pkg: ") || strings.HasPrefix(line, "Benchmark"):
			b.raw.WriteString(line)
		}
		name, n, units, ok := benchmarkLine(line)
		for _, r := range s.rows {
			if ok && name == r.benchmark {
				found[name] = true
				if err := b.add(r.key, r.make(n, units)); err != nil {
					return err
				}
			}
		}
	}
	for _, r := range s.rows {
		if !found[r.benchmark] {
			b.table.Missing[r.key] = "the benchmark did not run"
		}
	}
	return nil
}

// benchmarkLine reads such as "BenchmarkOne/part-2  10  5 ns/op  7 things".
func benchmarkLine(line string) (name string, n int, units map[string]float64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || len(f)%2 != 0 {
		return "", 0, nil, false
	}
	name, ok = strings.CutPrefix(f[0], "Benchmark")
	if cores := strings.LastIndexByte(name, '-'); cores > 0 {
		if _, err := strconv.Atoi(name[cores+1:]); err == nil {
			name = name[:cores]
		}
	}
	n, err := strconv.Atoi(f[1])
	units = map[string]float64{}
	for i := 2; i < len(f); i += 2 {
		v, e := strconv.ParseFloat(f[i], 64)
		err = errors.Join(err, e)
		units[f[i+1]] = v
	}
	return name, n, units, ok && err == nil
}

var flatLine = regexp.MustCompile(`(\d+) jobs: heap (\d+) KiB after two tenths, (\d+) at the end; (\d+) allocations in the third tenth, (\d+) in the last`)

// flat is the cost of a job from the first to the millionth: allocations, which no other work on the machine changes.
func flat(ctx context.Context, b *bench) error {
	out, err := b.goTest(ctx, []string{"ROCKPOOL_FLAT_JOBS=1000000"}, "-run", "^TestFinishedJobsLeaveMemoryFlat$", "-v", "-count", "1", "-timeout", "20m", "./internal/orchestrator/leader")
	if err != nil {
		return err
	}
	m := flatLine.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("the test of finished jobs did not say what they cost:\n%s", out)
	}
	var n [6]float64
	for i := 1; i < len(n); i++ {
		n[i], _ = strconv.ParseFloat(m[i], 64) // digits
	}
	return b.add("Flat", report.Measurement{Value: n[5] / n[4], Count: int(n[1]), Note: fmt.Sprintf("heap %.0f KiB after two tenths, %.0f at the end", n[2], n[3])})
}

// goTest runs the toolchain in the project's folder.
func (b *bench) goTest(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go test %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}
