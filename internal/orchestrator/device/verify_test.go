package device_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/fake"
)

// used is a device that a task has just left with something on it.
func used(t *testing.T, p *fake.Plugin, m *device.Manager, what string, err error, calls int) {
	t.Helper()
	if _, err := m.Reserve("a", held("gpu-0")); err != nil {
		t.Fatal(err)
	}
	p.Leave("gpu-0", what, err, calls)
	m.Release("a")
}

func TestADeviceIsNotGivenBeforeItIsVerified(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, changes *int) {
		before := *changes
		used(t, p, m, "300 MiB of its memory are in use", nil, 4)
		synctest.Wait()
		if _, err := m.Reserve("b", held("gpu-1", "gpu-0")); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "task a has ended and 300 MiB") {
			t.Fatalf("a device that is not verified is reserved with error %v", err)
		}
		if _, err := m.Reserve("c", held("gpu-1")); err != nil {
			t.Errorf("another device is not free: %v", err)
		}
		start, told := time.Now(), ""
		if err := m.Await(t.Context(), "b", held("gpu-0"), func(s string) { told += s }); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 50*time.Millisecond+100*time.Millisecond+200*time.Millisecond+400*time.Millisecond {
			t.Errorf("the fifth look came after %v", d)
		}
		if told != "Waiting for device gpu-0: task a has ended and 300 MiB of its memory are in use" {
			t.Errorf("who waits is told %q", told)
		}
		if _, err := m.Reserve("b", held("gpu-0")); err != nil {
			t.Errorf("a device that is verified is not given: %v", err)
		}
		if *changes != before {
			t.Error("what lasted less than a second has changed the device's health")
		}
	})
}

func TestWhatIsLeftTooLongMakesADeviceUnhealthyUntilItIsGone(t *testing.T) {
	for name, left := range map[string]struct {
		what string
		err  error
		want string
	}{
		"something that stays":      {what: "2 processes are still on it: 7, 8", want: "2 processes are still on it: 7, 8"},
		"nobody knows":              {err: errors.New("no permission"), want: "it cannot be found out what is left of it: no permission"},
		"nobody knows, with a text": {what: "", err: fault.New(fault.Unavailable, "the driver hangs"), want: "the driver hangs"},
	} {
		t.Run(name, func(t *testing.T) {
			managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, changes *int) {
				used(t, p, m, left.what, left.err, -1)
				start := time.Now()
				err := m.Await(t.Context(), "b", held("gpu-0"), func(string) {})
				if d := time.Since(start); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), left.want) || d < 30*time.Second || d > 36*time.Second {
					t.Fatalf("after %v the wait ends with %v", d, err)
				}
				synctest.Wait()
				if in := m.Devices()[0].Instances[0]; in.Healthy || !strings.HasSuffix(in.HealthDescription, left.want) || *changes != 2 {
					t.Errorf("after %d changes it is %+v", *changes, in)
				}
				if _, err := m.Reserve("b", held("gpu-0")); !fault.Is(err, fault.Unavailable) {
					t.Errorf("it is reserved with error %v", err)
				}
				if in := m.Devices()[0].Instances[1]; !in.Healthy {
					t.Errorf("another one is %+v", in)
				}
				p.Leave("gpu-0", "", nil, 0)
				time.Sleep(31 * time.Second)
				synctest.Wait()
				if in := m.Devices()[0].Instances[0]; !in.Healthy || *changes != 3 {
					t.Errorf("after %d changes it is %+v", *changes, in)
				}
				if _, err := m.Reserve("b", held("gpu-0")); err != nil {
					t.Errorf("what is free again is reserved with error %v", err)
				}
			})
		})
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		used(t, p, m, "something is on it", nil, -1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Await(ctx, "b", held("gpu-0"), func(string) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the wait ends with %v", err)
		}
	})
}

func TestWhoHoldsADeviceWaitsForNobody(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		p.Leave("gpu-0", "something is on it", nil, -1)
		m.Suspect("gone", held("gpu-0", "gpu-1"), nil)
		if err := m.Retake("a", held("gpu-0"), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Reserve("a", held("gpu-0")); err != nil {
			t.Errorf("who holds it gets %v", err)
		}
		m.Suspect("gone", held("gpu-0"), nil) // a record of long ago
		synctest.Wait()
		if _, err := m.Reserve("a", held("gpu-0", "gpu-1")); err != nil {
			t.Errorf("who holds it gets %v", err)
		}
	})
}

func TestWhatWasTakenOutIsNotWaitedFor(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		used(t, p, m, "something is on it", nil, -1)
		synctest.Wait()
		p.Set(fake.Report(0))
		time.Sleep(6 * time.Second)
		p.Set(fake.Report(4)) // another one of the same name
		synctest.Wait()
		if _, err := m.Reserve("b", held("gpu-0")); err != nil {
			t.Errorf("it is reserved with error %v", err)
		}
	})
}

// slow is a plugin that does not say what is left before it is told to stop.
type slow struct{ *fake.Plugin }

func (slow) Residue(ctx context.Context, _ string) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func TestALookThatIsUnderWayDoesNotKeepTheNodeFromStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := device.NewManager(logging.Discard(), slow{fake.New(1)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = m.Run(ctx, func() {})
		}()
		<-m.Known()
		if _, err := m.Reserve("a", held("gpu-0")); err != nil {
			t.Fatal(err)
		}
		m.Release("a")
		synctest.Wait()
		cancel()
		<-ended
	})
}

// What was left on a slot is on the whole GPU too, however it is offered now.
func TestAGPUThatIsDividedDifferentlyIsVerified(t *testing.T) {
	for name, c := range map[string]struct {
		before, after device.Report
		held, left    string
	}{
		"slots that were":        {fake.Sliced(2, 4), fake.Report(2), "gpu-0::1", "gpu-0"},
		"slots that are":         {fake.Report(2), fake.Sliced(2, 4), "gpu-0", "gpu-0::3"},
		"more slots than before": {fake.Sliced(2, 2), fake.Sliced(2, 1), "gpu-0::1", "gpu-0::0"},
	} {
		t.Run(name, func(t *testing.T) {
			managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
				p.Set(c.before)
				synctest.Wait()
				if _, err := m.Reserve("a", held(c.held)); err != nil {
					t.Fatal(err)
				}
				p.Leave(c.left, "something is on it", nil, -1)
				p.Set(c.after)
				synctest.Wait()
				m.Release("a")
				synctest.Wait()
				if _, err := m.Reserve("b", held(c.left)); !fault.Is(err, fault.Unavailable) {
					t.Errorf("it is reserved with error %v", err)
				}
				p.Leave(c.left, "", nil, 0)
				time.Sleep(10 * time.Second)
				if _, err := m.Reserve("b", held(c.left)); err != nil {
					t.Errorf("once it is clean, it is reserved with error %v", err)
				}
			})
		})
	}
}
