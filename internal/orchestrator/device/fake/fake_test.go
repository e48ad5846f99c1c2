package fake_test

import (
	"testing"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/device/devicetest"
	"rockpool/internal/orchestrator/device/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheFakeIsAPlugin(t *testing.T) {
	devicetest.Run(t, func() devicetest.World {
		p := fake.New(2)
		return devicetest.World{Plugin: p, Healthy: "gpu-0", Ailing: "gpu-1", Ail: func() { p.Ail("gpu-1", "a test") }, Heal: func() { p.Ail("gpu-1", "") },
			Stain: func() { p.Leave("gpu-0", "a process is still on it", nil, -1) }, Clean: func() { p.Leave("gpu-0", "", nil, 0) }}
	})
}

func TestTheFakeHasSlots(t *testing.T) {
	devicetest.RunSlots(t, func() devicetest.Sliced {
		p := fake.New(2)
		p.Set(fake.Sliced(2, 4))
		return devicetest.Sliced{Plugin: p, GPUs: []string{"gpu-0", "gpu-1"}, Slots: 4, Variable: "FAKE_VISIBLE_DEVICES",
			Ail: func() { p.Ail("gpu-1", "a test") }, Heal: func() { p.Ail("gpu-1", "") }}
	})
}
