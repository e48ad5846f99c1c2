package nomad

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/runner"
)

// keyPrefix is where lie what keys of claims stand for.
const keyPrefix = "rockpool/keys/"

// Times of keys.
const (
	sweepTime = 30 * time.Second
	// keptTime is how long a key stays that nobody changes. From then on the mark in the runner's job tells, whose event every gateway has had.
	keptTime = 2 * time.Minute
)

// Keys are variables of the cluster, one for each key of a claim: which runner it is to be.
type Keys struct{ client *Client }

// NewKeys makes keys.
func NewKeys(c *Client) *Keys { return &Keys{c} }

// Agreed is what a key stands for.
func (k *Keys) Agreed(ctx context.Context, key string) (runner.Agreed, error) {
	v, _, err := k.client.api.Variables().Peek(keyPrefix+key, k.client.query(ctx))
	if err != nil || v == nil {
		return runner.Agreed{}, forbidden(classify(err, "read the key of a claim"))
	}
	return runner.Agreed{Runner: v.Items["runner"], Request: v.Items["request"], Gateway: v.Items["gateway"], Index: v.ModifyIndex}, nil
}

// Agree has a key stand for a runner, by compare-and-set.
func (k *Keys) Agree(ctx context.Context, key string, a runner.Agreed) (uint64, bool, error) {
	v := api.NewVariable(keyPrefix + key)
	v.Items, v.ModifyIndex = map[string]string{"runner": a.Runner, "request": a.Request, "gateway": a.Gateway}, a.Index
	got, _, err := k.client.api.Variables().CheckedUpdate(v, k.client.write(ctx))
	switch {
	case conflicts(err):
		return 0, false, nil
	case err != nil:
		return 0, false, forbidden(classify(err, "write the key of a claim"))
	}
	return got.ModifyIndex, true, nil
}

// forbidden says what to allow.
func forbidden(err error) error {
	if fault.Is(err, fault.Forbidden) {
		return fault.Wrap(fault.Forbidden, err, "an Idempotency-Key needs variables of the cluster: let the gateway's token list, read, write and destroy them below %q", keyPrefix)
	}
	return err
}

// Standing is how the cluster has a runner.
func (k *Keys) Standing(ctx context.Context, id string) (used bool, m runner.Mark, there bool, err error) {
	job, err := k.client.present(ctx, id)
	if err != nil || job == nil || job.Stop != nil && *job.Stop {
		return false, runner.Mark{}, false, err
	}
	used, m = claimOf(job)
	return used, m, true, nil
}

// Run removes the keys that nobody has changed for a while, as long as this gateway leads, until ctx ends.
func (k *Keys) Run(ctx context.Context, leading func() bool) error {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	seen := map[string]change{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !leading() {
			clear(seen)
			continue
		}
		callCtx, cancel := context.WithTimeout(ctx, sweepTime)
		err := k.sweep(callCtx, seen, time.Now())
		cancel()
		if err != nil && ctx.Err() == nil {
			k.client.log.WithField("error", err.Error()).Warn("the keys of claims that are over could not be removed, it is tried again")
		}
	}
}

// sweep is one look. How old a key is is told by how long it has been seen as it is: no clock is compared with another's.
func (k *Keys) sweep(ctx context.Context, seen map[string]change, now time.Time) error {
	list, _, err := k.client.api.Variables().PrefixList(keyPrefix, k.client.query(ctx))
	if err != nil {
		return forbidden(classify(err, "list the keys of claims"))
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	there := make(map[string]bool, len(list))
	for _, v := range list {
		there[v.Path] = true
		last, ok := seen[v.Path]
		if !ok || last.index != v.ModifyIndex {
			seen[v.Path] = change{v.ModifyIndex, now}
		} else if now.Sub(last.at) >= keptTime {
			g.Go(func() error {
				_, err := k.client.api.Variables().CheckedDelete(v.Path, v.ModifyIndex, k.client.write(gctx))
				if err = classify(ignoreConflict(err), "remove the key of a claim"); fault.Is(err, fault.NotFound) {
					return nil
				}
				return err
			})
		}
	}
	for path := range seen {
		if !there[path] {
			delete(seen, path)
		}
	}
	return g.Wait()
}
