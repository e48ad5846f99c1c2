package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// templateFile is what runners are made of, seen from the project's folder.
const templateFile = "deploy/jobs/template-environment.nomad.hcl"

// smallTemplate reserves little for each runner, so that memory in use bounds their number and not memory promised.
func smallTemplate() ([]byte, error) {
	text, err := os.ReadFile(templateFile)
	if err != nil {
		return nil, fmt.Errorf("%w: run this in the project's folder, or leave full nodes out with -density 0", err)
	}
	reserved := regexp.MustCompile(`(memory +=) 50\n`)
	if !reserved.Match(text) {
		return nil, fmt.Errorf("%s reserves other than 50 MB", templateFile)
	}
	return reserved.ReplaceAll(text, []byte("$1 10\n")), nil
}

// density fills a node of its own with idle runners, and measures what they cost and what the service is like meanwhile.
func (b *bench) density(ctx context.Context, dir string, runners uint) (err error) {
	if b.service == nil || runners == 0 {
		return nil // somebody else's gateway is not filled up
	}
	template := filepath.Join(dir, "small.nomad.hcl")
	text, err := smallTemplate()
	if err != nil {
		return err
	}
	if err := os.WriteFile(template, text, 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "density.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	bin, err := filepath.Abs(b.gateway)
	if err != nil {
		return err
	}
	s, err := service.Start(ctx, service.Options{Binary: bin, Dir: filepath.Join(dir, "density"), Token: "bench", Log: log, Env: []string{"ROCKPOOL_SERVER_TEMPLATEJOBFILE=" + template}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	dense := *b
	dense.Client, dense.service, dense.table = s.Client, s, nil
	free, err := available()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := dense.PutEnvironment(ctx, env, platform.Environment{PrewarmingPoolSize: runners, CPULimit: 1, MemoryLimit: 64, Image: "host"}); err != nil {
		return err
	}
	if err := dense.waitIdleFor(ctx, runners, 3*time.Minute); err != nil {
		return err
	}
	filled := time.Since(start)
	left, err := available()
	if err != nil {
		return err
	}
	resident, _, err := s.Memory()
	if err != nil {
		return err
	}
	before, err := cpuTime(s.PID())
	if err != nil {
		return err
	}
	quiet := time.NewTimer(5 * time.Second) // what is measured is time that passes
	select {
	case <-quiet.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := cpuTime(s.PID())
	if err != nil {
		return err
	}
	claims, runs := figure{name: fmt.Sprintf("claim, with %d runners", runners)}, figure{name: fmt.Sprintf("execute `echo hi` to close, with %d runners", runners)}
	var mine []string
	for range 30 {
		begin := time.Now()
		r, err := dense.Claim(ctx, env, time.Hour)
		if err != nil {
			return err
		}
		claims.samples = append(claims.samples, time.Since(begin))
		mine = append(mine, r)
	}
	if err := dense.waitIdle(ctx, runners); err != nil { // the refill is not what is measured
		return err
	}
	for _, r := range mine {
		begin := time.Now()
		o, err := dense.Run(ctx, r, platform.Execution{Command: "echo hi", TimeLimit: 20})
		if err != nil || o.Stdout != "hi\r\n" {
			return fmt.Errorf("echo hi: %+v, %w", o, err)
		}
		runs.samples = append(runs.samples, time.Since(begin))
	}
	for _, r := range mine {
		if err := dense.Release(ctx, r); err != nil {
			return err
		}
	}
	b.add(figure{name: fmt.Sprintf("pool of %d filled", runners), text: fmt.Sprintf("%.1f s", filled.Seconds()), rate: float64(runners) / filled.Seconds()})
	b.add(figure{name: "memory of an idle runner: of the machine, all in all", text: fmt.Sprintf("%.2f MB", float64(free-left)/float64(runners)/(1<<20))})
	b.add(figure{name: fmt.Sprintf("resident size of the service, %d idle runners", runners), text: fmt.Sprintf("%d MB", resident>>20)})
	b.add(figure{name: fmt.Sprintf("CPU of the service, %d idle runners", runners), text: fmt.Sprintf("%.2f %% of a core", 100*(after-before).Seconds()/5)})
	b.add(claims)
	b.add(runs)
	start = time.Now()
	if err := dense.DeleteEnvironment(ctx, env); err != nil {
		return err
	}
	b.add(figure{name: fmt.Sprintf("environment of %d runners deleted", runners), text: fmt.Sprintf("%.1f s", time.Since(start).Seconds())})
	return nil
}

// available is the memory that the machine could give to programs, in bytes.
func available() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo does not say what is available")
}
