package wire

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// amount is a number with something behind it that looks like a unit.
var amount = regexp.MustCompile(`^\s*[+-]?[0-9]+(?:\.[0-9]+)?\s*([A-Za-z][A-Za-z/]*)\s*$`)

// ordered are the operators that need a unit which is known: a text is never more than a number.
var ordered = []string{"<", "<=", ">", ">="}

// device checks a request for devices. What could never be met is told here rather than by a job that waits for ever.
func (p *Problems) device(where string, d *api.RequestedDevice) {
	if d == nil || d.Name == "" || val(d.Count) == 0 {
		p.err("%s: a device needs a name and a count of at least 1", where)
		return
	}
	where = fmt.Sprintf("%s, device %.64q", where, d.Name)
	for part := range strings.SplitSeq(d.Name, "/") {
		if part == "" || part != strings.TrimSpace(part) {
			p.err("%s: a device is named type, vendor/type or vendor/type/model, such as nvidia/gpu", where)
			break
		}
	}
	p.conditions(where, d.Constraints, d.Affinities, nil)
	for i, c := range d.Constraints {
		if c != nil {
			p.ofDevice(fmt.Sprintf("%s: constraint %d", where, i+1), c.LTarget, c.Operand, c.RTarget)
		}
	}
	for i, a := range d.Affinities {
		if a != nil {
			p.ofDevice(fmt.Sprintf("%s: affinity %d", where, i+1), a.LTarget, a.Operand, a.RTarget)
		}
	}
}

// ofDevice checks what a condition looks at and compares with.
func (p *Problems) ofDevice(where, left, operand, right string) {
	switch operand {
	case "distinct_hosts", "distinct_property":
		p.err("%s: %s is about nodes: it stands in the job, the group or the task", where, operand)
		return
	}
	for _, target := range []string{left, right} {
		if !sched.DeviceTarget(target) {
			p.err("%s: %q is none of ${device.attr.<name>}, ${device.model}, ${device.vendor}, ${device.type}, ${device.ids}", where, target)
		}
		if m := amount.FindStringSubmatch(target); m != nil && slices.Contains(ordered, operand) && !model.KnownUnit(m[1]) {
			p.err("%s: %q is no unit of %q; known are MiB, GiB, MB, GB, MHz, GHz, W and others, in these letters", where, m[1], target)
		}
	}
}
