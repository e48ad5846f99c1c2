package device_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
		var one sync.Mutex
		var changes int // read when everybody waits
		changed := func() {
			one.Lock()
			defer one.Unlock()
			changes++
		}
		running.Go(func() {
			if err := m.Run(ctx, changed); err != nil {
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
		if err := m.Retake("a", held("gpu-0", "gone"), nil); err != nil {
			t.Fatal(err)
		}
		if err := m.Retake("b", held("gpu-0"), nil); !fault.Is(err, fault.Conflict) {
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
		if err := m.Retake("d", held("gpu-1"), nil); !fault.Is(err, fault.Conflict) {
			t.Errorf("and taken back with %v", err)
		}
		m.Release("a")
		m.Release("b")
		if _, err := m.Reserve("c", held("gpu-2")); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "gpu-2::") {
			t.Errorf("a GPU whose slots were not verified is reserved with %v", err)
		}
		synctest.Wait()
		if _, err := m.Reserve("c", held("gpu-2")); err != nil {
			t.Errorf("a GPU without holders is reserved with %v", err)
		}
	})
}

// A part that the hardware has made may be taken away from an idle task, which can still open what it was made of. Whatever is made of the device then waits for that task.
func TestWhatAPartThatIsGoneWasMadeOfIsNotGiven(t *testing.T) {
	for name, after := range map[string]device.Report{
		"a whole":     fake.Report(2),
		"slots":       fake.Sliced(2, 4),
		"other parts": fake.Divided(2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, changes *int) {
				given := func(owner, gpu string) error {
					for _, g := range after.Groups {
						for _, in := range g.Instances {
							if in.ID == gpu || in.Parent == gpu {
								_, err := m.Reserve(owner, held(in.ID))
								return err
							}
						}
					}
					t.Fatalf("there is nothing of %s", gpu)
					return nil
				}
				offered := func(gpu string) (n int, why string) {
					for _, g := range m.Devices() {
						for _, in := range g.Instances {
							if in.ID != gpu && in.Parent != gpu {
								continue
							}
							if in.Healthy {
								n++
							} else {
								why = in.HealthDescription
							}
						}
					}
					return n, why
				}
				p.Set(fake.Divided(2, 2))
				synctest.Wait()
				if _, err := m.Reserve("a", held("MIG-2-gpu-0-1")); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Reserve("b", held("MIG-2-gpu-0-0")); err != nil {
					t.Fatalf("the part beside it is reserved with %v", err)
				}
				m.Release("b")
				synctest.Wait() // until it is verified
				wholes := m.Wholes("a")
				p.Set(after)
				synctest.Wait()
				if n, why := offered("gpu-0"); n != 0 || !strings.Contains(why, "task a still holds MIG-2-gpu-0-1") {
					t.Errorf("%d are offered of the GPU that somebody has a part of; the others say %q", n, why)
				}
				if n, _ := offered("gpu-1"); n == 0 {
					t.Error("nothing is offered of the other GPU")
				}
				if err := given("c", "gpu-0"); !fault.Is(err, fault.Conflict) {
					t.Errorf("it is reserved with %v", err)
				}
				if err := given("d", "gpu-1"); err != nil {
					t.Errorf("what is of another GPU is reserved with %v", err)
				}
				if why := m.Ailing()["MIG-2-gpu-0-1"]; why == "" {
					t.Error("who holds what is gone is not told")
				}

				m.Release("a")
				if err := m.Retake("a2", held("MIG-2-gpu-0-1"), wholes); err != nil { // as a later process of the agent would
					t.Fatal(err)
				}
				synctest.Wait()
				if n, _ := offered("gpu-0"); n != 0 {
					t.Errorf("%d are offered once it was taken back", n)
				}

				before := *changes
				m.Release("a2")
				synctest.Wait()
				if n, why := offered("gpu-0"); n == 0 || *changes == before {
					t.Errorf("when it has ended %d are offered, the others say %q; told: %v", n, why, *changes > before)
				}
				if err := given("c", "gpu-0"); err != nil {
					t.Errorf("and it is reserved with %v", err)
				}
			})
		})
	}
}

func TestWhatAPartThatIsGoneWasMadeOfIsVerified(t *testing.T) {
	managed(t, func(t *testing.T, p *fake.Plugin, m *device.Manager, _ *int) {
		p.Set(fake.Divided(1, 2))
		synctest.Wait()
		if _, err := m.Reserve("a", held("MIG-2-gpu-0-1")); err != nil {
			t.Fatal(err)
		}
		wholes := m.Wholes("a")
		p.Set(fake.Report(1))
		p.Leave("gpu-0", "something is on it", nil, -1)
		synctest.Wait()
		m.Release("a")
		synctest.Wait()
		if _, err := m.Reserve("b", held("gpu-0")); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "something is on it") {
			t.Errorf("it is reserved with %v", err)
		}
		p.Leave("gpu-0", "", nil, 0)
		time.Sleep(10 * time.Second)
		m.Suspect("a", held("MIG-2-gpu-0-1"), wholes) // as a later process of the agent would, which does not know whether a has run
		if _, err := m.Reserve("b", held("gpu-0")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("before it is verified it is reserved with %v", err)
		}
		synctest.Wait()
		if _, err := m.Reserve("b", held("gpu-0")); err != nil {
			t.Errorf("once it is clean it is reserved with %v", err)
		}
	})
}
