// Package devicetest holds what every device.Plugin must do, fake or real.
package devicetest

import (
	"context"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/orchestrator/device"
)

// World is a plugin that nobody watches yet, with two instances.
type World struct {
	Plugin          device.Plugin
	Healthy, Ailing string // ids of two instances, both healthy at first
	Ail, Heal       func() // make the second one unhealthy, and healthy again
	Stain, Clean    func() // leave something on the first one, and take it away
}

// patience is for what takes milliseconds on a machine that does nothing else.
const patience = 20 * time.Second

// Run tests what newWorld makes, once for each rule.
func Run(t *testing.T, newWorld func() World) {
	for name, rule := range map[string]func(*testing.T, World, <-chan device.Report){
		"both instances are found, sorted, in a group with a vendor, a type and a name": func(t *testing.T, w World, reports <-chan device.Report) {
			r := until(t, reports, func(r device.Report) bool { return healthy(r, w.Healthy) && healthy(r, w.Ailing) })
			if !r.Detected || !r.Healthy || r.Description == "" {
				t.Errorf("the report is %+v", r)
			}
			for _, g := range r.Groups {
				if g.Vendor == "" || g.Type == "" || g.Name == "" {
					t.Errorf("a group is %+v", g)
				}
				for i := 1; i < len(g.Instances); i++ {
					if g.Instances[i-1].ID >= g.Instances[i].ID {
						t.Errorf("%s stands before %s", g.Instances[i-1].ID, g.Instances[i].ID)
					}
				}
			}
		},
		"an instance that ails is told of, with the reason, and stays; its reservation is refused": func(t *testing.T, w World, reports <-chan device.Report) {
			first := until(t, reports, func(r device.Report) bool { return healthy(r, w.Ailing) })
			w.Ail()
			r := until(t, reports, func(r device.Report) bool { return !healthy(r, w.Ailing) })
			if _, in := r.Instance(w.Ailing); in == nil || in.HealthDescription == "" {
				t.Errorf("the instance is %+v", in)
			}
			if !healthy(first, w.Ailing) {
				t.Error("an old report has changed")
			}
			if !healthy(r, w.Healthy) {
				t.Error("the other instance ails too")
			}
			if _, err := w.Plugin.Reserve([]string{w.Healthy, w.Ailing}); !fault.Is(err, fault.Unavailable) {
				t.Errorf("its reservation ends with %v", err)
			}
			w.Heal()
			until(t, reports, func(r device.Report) bool { return healthy(r, w.Ailing) })
		},
		"instances that are there can be used, as often as one likes; others are not there": func(t *testing.T, w World, reports <-chan device.Report) {
			until(t, reports, func(r device.Report) bool { return healthy(r, w.Healthy) && healthy(r, w.Ailing) })
			for range 2 {
				if env, err := w.Plugin.Reserve([]string{w.Healthy, w.Ailing}); err != nil || len(env) == 0 {
					t.Errorf("the environment is %v, %v", env, err)
				}
			}
			if _, err := w.Plugin.Reserve([]string{"no-such-instance"}); !fault.Is(err, fault.NotFound) {
				t.Errorf("an instance that is not there is reserved with %v", err)
			}
		},
		"what is left on an instance is told until it is gone; of one that is not there nothing is known": func(t *testing.T, w World, reports <-chan device.Report) {
			until(t, reports, func(r device.Report) bool { return healthy(r, w.Healthy) && healthy(r, w.Ailing) })
			clean := func() {
				for _, id := range []string{w.Healthy, w.Ailing} {
					if left, err := w.Plugin.Residue(t.Context(), id); left != "" || err != nil {
						t.Errorf("on %s is left %q, %v", id, left, err)
					}
				}
			}
			clean()
			w.Stain()
			for range 2 {
				if left, err := w.Plugin.Residue(t.Context(), w.Healthy); left == "" || err != nil {
					t.Errorf("what is left is %q, %v", left, err)
				}
			}
			if left, err := w.Plugin.Residue(t.Context(), w.Ailing); left != "" || err != nil {
				t.Errorf("on the other one is left %q, %v", left, err)
			}
			w.Clean()
			clean()
			if _, err := w.Plugin.Residue(t.Context(), "no-such-instance"); !fault.Is(err, fault.NotFound) {
				t.Errorf("what is left on an instance that is not there: %v", err)
			}
		},
		"figures have values of measures in their order": func(t *testing.T, w World, reports <-chan device.Report) {
			until(t, reports, func(r device.Report) bool { return healthy(r, w.Healthy) && healthy(r, w.Ailing) })
			all, err := w.Plugin.Stats(t.Context())
			if err != nil || len(all) != 2 || all[0].ID >= all[1].ID {
				t.Fatalf("figures are %+v, %v", all, err)
			}
			for _, s := range all {
				if s.At.IsZero() || len(s.Values) == 0 || s.Vendor == "" || s.Type == "" || s.Name == "" {
					t.Errorf("a sample is %+v", s)
				}
				for i, v := range s.Values {
					if v.Measure.Name() == "" || v.Measure.Figure() == "" || i > 0 && s.Values[i-1].Measure >= v.Measure {
						t.Errorf("value %d of %s is %+v", i, s.ID, v)
					}
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.Heal()
			reports := make(chan device.Report, 1)
			ctx, cancel := context.WithCancel(t.Context())
			var running lifecycle.Tasks
			running.Go(func() {
				_ = w.Plugin.Watch(ctx, func(r device.Report) { // the error is that of ctx
					select { // only the newest counts
					case <-reports:
					default:
					}
					reports <- r
				})
			})
			rule(t, w, reports)
			cancel()
			bounded, stop := context.WithTimeout(context.Background(), patience)
			defer stop()
			if err := running.Wait(bounded); err != nil {
				t.Errorf("Watch does not end with its context: %v", err)
			}
		})
	}
}

func healthy(r device.Report, id string) bool {
	_, in := r.Instance(id)
	return in != nil && in.Healthy
}

func until(t *testing.T, reports <-chan device.Report, is func(device.Report) bool) device.Report {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case r := <-reports:
			if is(r) {
				return r
			}
		case <-deadline:
			t.Fatal("no report says so")
		}
	}
}
