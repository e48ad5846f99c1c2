//go:build linux && cgo

package nvidia_test

import (
	"strings"
	"testing"
	"time"

	"rockpool/internal/fault"
)

// left asks what is left on an instance, and expects a sentence with these words; "" = nothing.
func (p *watched) left(what, id, want string) {
	p.t.Helper()
	got, err := p.plugin.Residue(p.t.Context(), id)
	if err != nil || (got == "") != (want == "") || !strings.Contains(got, want) {
		p.t.Errorf("%s: on %s is left %q, %v, want %q", what, id, got, err, want)
	}
}

func TestWhatATaskLeavesOnAGPU(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	w.say("gpu 1 mig", "1")
	w.part(1, 0, "MIG-a", "1g.5gb", "4864")
	w.part(1, 1, "MIG-b", "1g.5gb", "4864")
	p := w.watch(w.config())
	p.until("there are a GPU and two parts", found(3))
	p.left("at rest", uuid(0), "") // 1024 MiB of it are used all the time
	p.left("at rest", "MIG-a", "")

	w.say("gpu 0 processes", "4711 12 13 14 15", "part 1 0 processes", "99")
	p.left("processes", uuid(0), "5 processes are still on it: 12, 13, 14, 15, …")
	p.left("a process", "MIG-a", "1 process is still on it: 99")
	p.left("the part beside it", "MIG-b", "")
	w.say("gpu 0 processes", "", "part 1 0 processes", "")
	p.left("no process any more", uuid(0), "")
	p.left("no process any more", "MIG-a", "")

	w.say("gpu 0 used", "1324", "part 1 1 used", "512")
	p.left("memory", uuid(0), "300 MiB of its memory are in use that no process holds")
	p.left("memory", "MIG-b", "500 MiB of its memory")
	p.until("it was looked at once more", found(3))
	p.left("memory that was seen meanwhile", uuid(0), "300 MiB")
	w.say("gpu 0 used", "1040", "part 1 1 used", "20")
	p.left("hardly any memory", uuid(0), "")
	p.left("hardly any memory", "MIG-b", "")

	w.say("gpu 0 lingering", "3 512 77")
	for range 3 {
		p.left("while the driver takes it away", uuid(0), "1 process is still on it: 77")
	}
	p.left("it has", uuid(0), "")
}

// What the driver does to say nothing is no proof that nothing is there.
func TestWhatIsNotKnownToBeLeftIsAnError(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	cfg := w.config()
	cfg.Poll, cfg.CallTimeout = time.Hour, 300*time.Millisecond
	p := w.watch(cfg)
	p.until("there is a GPU", found(1))
	fails := func(why, want string) {
		t.Helper()
		if left, err := p.plugin.Residue(t.Context(), uuid(0)); err == nil || left != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: left is %q, %v", why, left, err)
		}
	}
	w.say("fail nvmlDeviceGetComputeRunningProcesses_v3", "1 0 4")
	fails("processes may not be listed", "nvmlDeviceGetComputeRunningProcesses_v3: no permission")
	w.say("fail nvmlDeviceGetComputeRunningProcesses_v3", "1 0 3") // does not offer it: the memory tells
	p.left("without a list", uuid(0), "")
	w.say("gpu 0 used", "2048")
	p.left("without a list", uuid(0), "1024 MiB of its memory")
	w.say("fail nvmlDeviceGetMemoryInfo_v2", "1 0 3", "fail nvmlDeviceGetMemoryInfo", "1 0 3")
	fails("nothing is told at all", "neither the processes nor the memory")
	w.say("fail nvmlDeviceGetComputeRunningProcesses_v3", "")
	p.left("without memory", uuid(0), "")
	w.say("fail nvmlDeviceGetMemoryInfo_v2", "1 0 999")
	fails("the memory is not told", "nvmlDeviceGetMemoryInfo_v2: unknown error")
	w.say("fail nvmlDeviceGetMemoryInfo_v2", "", "hang nvmlDeviceGetComputeRunningProcesses_v3", "1")
	fails("it hangs", "has not returned")
	fails("it still hangs", "has not returned")
	w.say("hang nvmlDeviceGetComputeRunningProcesses_v3", "")
}

func TestAnOldLibraryTellsWhatIsLeft(t *testing.T) {
	w, child := inChild(t, "-DOLD")
	if !child {
		return
	}
	w.gpus(1)
	p := w.watch(w.config())
	p.until("there is a GPU", found(1))
	p.left("at rest", uuid(0), "")
	w.say("gpu 0 processes", "17 18")
	p.left("processes", uuid(0), "2 processes are still on it: 17, 18")
	w.say("gpu 0 processes", "", "gpu 0 used", "1500")
	p.left("memory", uuid(0), "476 MiB")
}

func TestAGPUThatIsLostTellsNothing(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	p := w.watch(w.config())
	p.until("there is a GPU", found(1))
	w.say("gpu 0 lost", "1")
	p.ill(uuid(0), "fallen off the bus")
	if left, err := p.plugin.Residue(t.Context(), uuid(0)); !fault.Is(err, fault.Unavailable) || left != "" {
		t.Errorf("left is %q, %v", left, err)
	}
	w.unplug(0)
	w.say("gpus", "")
	p.until("there is none", found(0))
	if _, err := p.plugin.Residue(t.Context(), uuid(0)); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a GPU that is gone: %v", err)
	}
}
