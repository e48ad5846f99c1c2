package device_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/fake"
	"rockpool/internal/orchestrator/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// managed runs a manager in a bubble.
func managed(t *testing.T, f func(t *testing.T, p *fake.Plugin, m *device.Manager, changes *int)) {
	synctest.Test(t, func(t *testing.T) {
		p := fake.New(4)
		m := device.NewManager(logging.Discard(), p)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var changes int // read when everybody waits
		running.Go(func() {
			if err := m.Run(ctx, func() { changes++ }); err != nil {
				t.Error(err)
			}
		})
		<-m.Known()
		synctest.Wait()
		f(t, p, m, &changes)
		cancel()
		running.Wait()
	})
}

func held(ids ...string) []model.AllocatedDevice {
	return []model.AllocatedDevice{{Vendor: "nvidia", Type: "gpu", Name: "Fake", DeviceIDs: ids}}
}

func TestAnInstanceHasOneHolder(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		env, err := m.Reserve("a", held("gpu-0", "gpu-1"))
		if err != nil || env["FAKE_VISIBLE_DEVICES"] != "gpu-0,gpu-1" {
			t.Fatalf("the environment is %v, %v", env, err)
		}
		if _, err := m.Reserve("b", held("gpu-2", "gpu-1")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "held by task a") {
			t.Errorf("a second holder gets %v", err)
		}
		if _, err := m.Reserve("c", held("gpu-2")); err != nil {
			t.Errorf("what a reservation that failed had asked for is not free: %v", err)
		}
		if _, err := m.Reserve("a", held("gpu-0", "gpu-1")); err != nil {
			t.Errorf("who has it does not get it again: %v", err)
		}
		m.Release("a")
		synctest.Wait() // until it is verified
		if _, err := m.Reserve("b", held("gpu-1")); err != nil {
			t.Errorf("what was released is not free: %v", err)
		}
		if _, err := m.Reserve("d", held("gpu-9")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("an instance that is not there is reserved with %v", err)
		}
	})
}

func TestReservationsAreTakenBackWhateverBecameOfTheDevice(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		p.Ail("gpu-0", "it is too hot")
		synctest.Wait()
		if err := m.Retake("a", held("gpu-0", "gone")); err != nil {
			t.Fatal(err)
		}
		if err := m.Retake("b", held("gpu-0")); !fault.Is(err, fault.Conflict) {
			t.Errorf("a second holder gets %v", err)
		}
		if got := m.Ailing(); got["gpu-0"] != "it is too hot" || got["gone"] == "" || len(got) != 2 {
			t.Errorf("ailing are %v", got)
		}
	})
}

func TestOnlyChangesAreTold(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, changes *int) {
		before := *changes
		p.Set(fake.Report(4))
		synctest.Wait()
		if *changes != before {
			t.Error("the same report once more is a change")
		}
		p.Ail("gpu-3", "dust")
		synctest.Wait()
		if *changes != before+1 {
			t.Errorf("there were %d changes", *changes-before)
		}
		if in := m.Devices()[0].Instances[3]; in.Healthy || in.HealthDescription != "dust" {
			t.Errorf("the instance is %+v", in)
		}
		if attr := m.Attributes(); attr["device.fake"] != "1" || attr["unique.device.fake.description"] != "devices of a test" {
			t.Errorf("attributes are %v", attr)
		}
	})
}

// panics is a plugin that fails the first time.
type panics struct {
	*fake.Plugin
	failed bool
}

func (p *panics) Watch(ctx context.Context, publish func(device.Report)) error {
	if !p.failed {
		p.failed = true
		publish(fake.Report(1))
		panic("a defect")
	}
	return p.Plugin.Watch(ctx, publish)
}

func TestAPluginThatPanicsIsStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &panics{Plugin: fake.New(1)}
		m := device.NewManager(logging.Discard(), p)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		healthy := make(chan bool, 8)
		running.Go(func() {
			if err := m.Run(ctx, func() { healthy <- m.Devices()[0].Instances[0].Healthy }); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		for i, want := range []bool{true, false, true} {
			if got := <-healthy; got != want {
				t.Errorf("report %d says healthy: %v", i, got)
			}
		}
		cancel()
		running.Wait()
	})
}

// TestReservationsAgainstAModel holds the rule that an instance has one owner at most, whatever comes in which order.
func TestReservationsAgainstAModel(t *testing.T) {
	m := device.NewManager(logging.Discard(), fake.New(4))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	<-m.Known()
	rapid.Check(t, func(t *rapid.T) {
		owners := []string{"a", "b", "c"}
		for _, o := range owners {
			m.Release(o)
		}
		has := map[string]string{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			owner := rapid.SampledFrom(owners).Draw(t, "owner")
			if rapid.Bool().Draw(t, "release") {
				m.Release(owner)
				maps.DeleteFunc(has, func(_, o string) bool { return o == owner })
				continue
			}
			ids := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"gpu-0", "gpu-1", "gpu-2", "gpu-3"}), 1, 4, rapid.ID).Draw(t, "ids")
			free := true
			for _, id := range ids {
				free = free && (has[id] == "" || has[id] == owner)
			}
			if err := m.Await(ctx, owner, held(ids...), func(string) {}); err != nil {
				t.Fatal(err)
			}
			_, err := m.Reserve(owner, held(ids...))
			if (err == nil) != free {
				t.Fatalf("%s asks for %v while %v: %v", owner, ids, has, err)
			}
			if err == nil {
				for _, id := range ids {
					has[id] = owner
				}
			}
		}
	})
}

func TestAGPUAndItsSlotsHaveNoTwoHolders(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		if _, err := m.Reserve("whole", held("gpu-0")); err != nil {
			t.Fatal(err)
		}
		p.Set(fake.Sliced(4, 2)) // while somebody has one of them
		synctest.Wait()
		if _, err := m.Reserve("a", held("gpu-0::1")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "instance gpu-0 is still held by task whole") {
			t.Errorf("a slot of a GPU that is held as a whole is reserved with %v", err)
		}
		env, err := m.Reserve("a", held("gpu-1::0", "gpu-1::1", "gpu-2::0"))
		if err != nil || env["FAKE_VISIBLE_DEVICES"] != "gpu-1,gpu-2" {
			t.Errorf("the environment is %v, %v", env, err)
		}
		if _, err := m.Reserve("b", held("gpu-2::1")); err != nil {
			t.Errorf("another slot of a GPU is reserved with %v", err)
		}
		if m.Held() != 5 {
			t.Errorf("%d are held", m.Held())
		}
		p.Set(fake.Report(4))
		synctest.Wait()
		if _, err := m.Reserve("c", held("gpu-2")); !fault.Is(err, fault.Conflict) {
			t.Errorf("a GPU with slots that are held is reserved with %v", err)
		}
		if err := m.Retake("d", held("gpu-1")); !fault.Is(err, fault.Conflict) {
			t.Errorf("and taken back with %v", err)
		}
		m.Release("a")
		m.Release("b")
		if _, err := m.Reserve("c", held("gpu-2")); err != nil {
			t.Errorf("a GPU without holders is reserved with %v", err)
		}
	})
}
