package chaos

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// gpuMB is the memory of each simulated GPU.
const gpuMB = 40960

// gpus is a group of n GPUs of a node. Those of each half are linked with each other and beside one NUMA node.
func gpus(prefix string, n int) model.NodeDevice {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: "S100", Attributes: map[string]model.Attribute{model.AttrMemory: model.IntOf(gpuMB, "MiB")}}
	id := func(i int) string { return fmt.Sprint(prefix, "-", i) }
	for i := range n {
		in := model.DeviceInstance{ID: id(i), Healthy: true, NUMANode: new(2 * i / n)}
		for k := range n {
			if k != i && 2*k/n == 2*i/n {
				in.Peers = append(in.Peers, id(k))
			}
		}
		d.Instances = append(d.Instances, in)
	}
	return d
}

// divided is a group of GPUs as parts: slots, or what the hardware makes.
func divided(whole model.NodeDevice, parts int, share string) model.NodeDevice {
	d := whole
	d.Name = fmt.Sprintf("%s %s %dmb", whole.Name, share, gpuMB/parts)
	d.Attributes = map[string]model.Attribute{model.AttrMemory: model.IntOf(int64(gpuMB/parts), "MiB"), model.AttrShare: model.TextOf(share)}
	d.Instances = nil
	for _, in := range whole.Instances {
		for p := range parts {
			part := model.DeviceInstance{ID: "MIG-" + in.ID + "-" + fmt.Sprint(p), Healthy: in.Healthy, Parent: in.ID, NUMANode: in.NUMANode}
			if share == model.ShareSlot {
				part.ID, part.ParentMemoryMB = model.SlotID(in.ID, p), gpuMB
			}
			d.Instances = append(d.Instances, part)
		}
	}
	return d
}

// equip gives a node what the i-th has: nothing, one GPU, eight, parts, slots, or some of each.
func equip(i int, id string) []model.NodeDevice {
	prefix := "GPU-" + id[:8]
	switch i % 6 {
	case 1:
		return []model.NodeDevice{gpus(prefix, 1)}
	case 2:
		return []model.NodeDevice{gpus(prefix, 8)}
	case 3:
		return []model.NodeDevice{divided(gpus(prefix, 2), 5, model.ShareMIG)}
	case 4:
		return []model.NodeDevice{divided(gpus(prefix, 2), 4, model.ShareSlot)}
	case 5:
		return []model.NodeDevice{gpus(prefix+"w", 2), divided(gpus(prefix+"s", 2), 2, model.ShareSlot)}
	}
	return nil
}

// afflicted is what a node says of its devices while faults of GPUs are active. Each hits one GPU of the node, which its time decides.
func afflicted(groups []model.NodeDevice, faults []Fault) []model.NodeDevice {
	out := slices.Clone(groups)
	for _, f := range faults {
		if len(out) == 0 {
			break
		}
		g := &out[int(f.At.Milliseconds())%len(out)]
		hit := wholeOf(g.Instances[int(f.At.Milliseconds())%len(g.Instances)])
		g.Instances = slices.Clone(g.Instances)
		switch f.Kind {
		case GPUFailure:
			for k := range g.Instances {
				if wholeOf(g.Instances[k]) == hit {
					g.Instances[k].Healthy, g.Instances[k].HealthDescription = false, "it was made to fail"
				}
			}
		case GPUGone:
			if rest := slices.DeleteFunc(g.Instances, func(in model.DeviceInstance) bool { return wholeOf(in) == hit }); len(rest) > 0 {
				g.Instances = rest
			} else {
				out = slices.Delete(out, slices.Index(ids(out), g.ID()), 1+slices.Index(ids(out), g.ID()))
			}
		case GPUDivided: // without asking who has them
			if g.Share() == "" {
				*g = divided(*g, 3, model.ShareSlot)
			}
		}
	}
	return out
}

func ids(groups []model.NodeDevice) (out []string) {
	for i := range groups {
		out = append(out, groups[i].ID())
	}
	return out
}

func wholeOf(in model.DeviceInstance) string {
	if in.Parent != "" {
		return in.Parent
	}
	return in.ID
}

// possession is who holds what of a node.
type possession struct {
	owner    map[string]string // by instance
	slots    map[string]int    // by GPU
	promised map[string]int    // MiB of slots, by GPU
}

func possessionOf(s *state.Snapshot, node string) (p possession, err error) {
	p = possession{map[string]string{}, map[string]int{}, map[string]int{}}
	var errs []error
	for a := range s.AllocsByNode(nil, node) {
		if !a.Holds() {
			continue
		}
		for d, id := range a.Resources.Instances {
			if other := p.owner[id]; other != "" {
				errs = append(errs, fmt.Errorf("at index %d device %s has two owners, %s and %s", s.Index(), id, other, a.ID))
			}
			p.owner[id] = a.ID
			if whole, slot := model.SlotParent(id); slot {
				p.slots[whole]++
				p.promised[whole] += d.MemoryMB
			}
		}
	}
	for gpu, mb := range p.promised {
		if mb > gpuMB {
			errs = append(errs, fmt.Errorf("at index %d %d MiB of %s are promised, which has %d", s.Index(), mb, gpu, gpuMB))
		}
		if owner := p.owner[gpu]; owner != "" {
			errs = append(errs, fmt.Errorf("at index %d %s has %s, of which slots are held", s.Index(), owner, gpu))
		}
	}
	return p, errors.Join(errs...)
}

// OwnedOnce checks that no instance of a node is held twice, nor a GPU beside its slots, nor more memory than a GPU has. It holds after every entry.
func OwnedOnce(s *state.Snapshot, node string) error {
	_, err := possessionOf(s, node)
	return err
}

// roomFor names a node on which a group of one task would find its devices; "" = there is none, and it has to wait.
func roomFor(s *state.Snapshot, g *model.TaskGroup) string {
	q := g.Tasks[0].Resources.Devices[0]
	for n := range s.Nodes(nil, "") {
		if !n.Ready() {
			continue
		}
		p, err := possessionOf(s, n.ID)
		if err != nil {
			continue // it is told by others
		}
		for i := range n.Resources.Devices {
			d := &n.Resources.Devices[i]
			if len(q.Constraints) > 0 && (q.Constraints[0].Operand == "is_set") != (d.Share() != "") {
				continue
			}
			different := map[string]bool{}
			for _, in := range d.Instances {
				_, slot := model.SlotParent(in.ID)
				whole := wholeOf(in)
				switch {
				case !in.Healthy || p.owner[in.ID] != "" || p.owner[whole] != "":
				case !slot && p.slots[whole] > 0:
				case slot && p.promised[whole]+d.MemoryMB() > gpuMB:
				case slot:
					different[whole] = true
				default:
					different[in.ID] = true
				}
			}
			if len(different) >= int(q.Count) {
				return n.ID
			}
		}
	}
	return ""
}

// request is what the jobs of a workload with devices ask for: nothing, or one of a few things.
func request(id string) []any {
	share := func(operand string) []any {
		return []any{map[string]any{"LTarget": "${device.attr.share}", "Operand": operand}}
	}
	var count int
	var constraints []any
	switch sum(id) % 6 {
	case 0:
		return nil
	case 1:
		count = 1
	case 2:
		count, constraints = 2, share("is_not_set")
	case 3:
		count, constraints = 1, share("is_set")
	case 4:
		count, constraints = 4, share("is_not_set")
	case 5:
		count, constraints = 2, share("is_set")
	}
	return []any{map[string]any{"Name": "nvidia/gpu", "Count": count, "Constraints": constraints}}
}

func sum(id string) (n int) {
	for _, r := range strings.ReplaceAll(id, "-", "") {
		n += int(r)
	}
	return n
}
