package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"rockpool/tests/load"
	"rockpool/tests/meter"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// templateFile is what runners are made of, seen from the project's folder.
const templateFile = "deploy/jobs/template-environment.nomad.hcl"

// smallTemplate writes one that reserves as little as there may be for each runner, so that memory in use bounds their number and not memory promised.
func (b *bench) smallTemplate() (path string, err error) {
	text, err := os.ReadFile(templateFile)
	if err != nil {
		return "", fmt.Errorf("%w: run this in the project's folder", err)
	}
	reserved := regexp.MustCompile(`(memory +=) 50\n`)
	if !reserved.Match(text) {
		return "", fmt.Errorf("%s reserves other than 50 MB", templateFile)
	}
	path = filepath.Join(b.dir, "small.nomad.hcl")
	return path, os.WriteFile(path, reserved.ReplaceAll(text, []byte("$1 10\n")), 0o600)
}

// smallEnvironment is of runners of which many fit on a node.
func smallEnvironment(size uint) platform.Environment {
	return platform.Environment{PrewarmingPoolSize: size, CPULimit: 1, MemoryLimit: 64, Image: "host"}
}

// dense fills a node of its own with idle runners, and measures what they cost and what the service is like meanwhile.
func dense(ctx context.Context, b *bench) error {
	return b.withSmall(ctx, "dense", func() error { return b.full(ctx) })
}

// withSmall calls f with a service in place of the shared one, of which many runners fit on its node.
func (b *bench) withSmall(ctx context.Context, name string, f func() error) error {
	template, err := b.smallTemplate()
	if err != nil {
		return err
	}
	return b.withService(ctx, name, []string{"ROCKPOOL_SERVER_TEMPLATEJOBFILE=" + template}, func(s *service.Service) error {
		shared, client := b.service, b.Client
		b.service, b.Client = s, s.Client
		defer func() { b.service, b.Client = shared, client }()
		return f()
	})
}

func (b *bench) full(ctx context.Context) error {
	free, err := meter.Available()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := b.PutEnvironment(ctx, env, smallEnvironment(b.runners)); err != nil {
		return err
	}
	if err := b.waitIdle(ctx, b.runners); err != nil {
		return err
	}
	filled := time.Since(start)
	left, err := meter.Available()
	if err != nil {
		return err
	}
	resident, err := meter.Resident(b.service.PID())
	if err != nil {
		return err
	}
	used, err := b.share(ctx, 5*time.Second)
	if err != nil {
		return err
	}
	var claims, runs load.Samples
	if err := b.someOf(ctx, b.runners, 30, &claims, &runs); err != nil {
		return err
	}
	begin := time.Now()
	if err := b.DeleteEnvironment(ctx, env); err != nil {
		return err
	}
	return errors.Join(
		b.addValue("DenseFill", filled.Seconds()), b.addValue("DenseMemory", float64(free-left)/float64(b.runners)/(1<<20)), b.addValue("DenseResident", float64(resident)/(1<<20)),
		b.addValue("DenseCPU", used), b.addCalls("DenseClaim", start, &claims), b.addCalls("DenseEcho", start, &runs), b.addValue("DenseDelete", time.Since(begin).Seconds()))
}

// someOf claims n runners of a full pool one after the other, waits for the refill, which is not what is measured, and executes once in each.
func (b *bench) someOf(ctx context.Context, size uint, n int, claims, runs *load.Samples) error {
	var mine []string
	for range n {
		start := time.Now()
		r, err := b.Claim(ctx, env, time.Hour)
		if err != nil {
			return err
		}
		claims.Since(start)
		if err := b.once(r); err != nil {
			return err
		}
		mine = append(mine, r)
	}
	if err := b.waitIdle(ctx, size); err != nil {
		return err
	}
	for _, r := range mine {
		start := time.Now()
		if _, err := b.echo(ctx, r); err != nil {
			return err
		}
		runs.Since(start)
	}
	for _, r := range mine {
		if err := b.Release(ctx, r); err != nil {
			return err
		}
	}
	return nil
}
