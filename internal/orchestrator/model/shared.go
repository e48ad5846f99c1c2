package model

import (
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/msgpack"
)

// Most jobs are like others but for their id, and so are their allocations. What they have alike they share once it was read from the log, a snapshot or a server,
// see [msgpack.Shared]; written it is what it would be without these types.
var (
	sharedGroups msgpack.Shared[TaskGroup]
	sharedTasks  msgpack.Shared[map[string]*AllocatedTask]
	sharedCounts msgpack.Shared[map[string]int]
)

// TaskGroups are the groups of a job. Each may be that of other jobs too.
type TaskGroups []*TaskGroup

// CodecEncodeSelf writes the groups as the slice that they are.
func (g TaskGroups) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode([]*TaskGroup(g)) }

// CodecDecodeSelf reads them, equal ones as one.
func (g *TaskGroups) CodecDecodeSelf(d *codec.Decoder) {
	var forms []codec.Raw
	d.MustDecode(&forms)
	*g = make(TaskGroups, len(forms))
	for i, form := range forms {
		(*g)[i] = sharedGroups.Decode(form)
	}
}

// AllocatedTasks are the parts of an allocation's tasks, by name. They may be those of other allocations too.
type AllocatedTasks map[string]*AllocatedTask

// CodecEncodeSelf writes them as the map that they are.
func (t AllocatedTasks) CodecEncodeSelf(e *codec.Encoder) {
	e.MustEncode(map[string]*AllocatedTask(t))
}

// CodecDecodeSelf reads them, equal ones as one.
func (t *AllocatedTasks) CodecDecodeSelf(d *codec.Decoder) { *t = *sharedTasks.Decode(form(d)) }

// Counts are numbers by name, such as that of nodes by datacenter. They may be those of other evaluations too.
type Counts map[string]int

// CodecEncodeSelf writes them as the map that they are.
func (c Counts) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode(map[string]int(c)) }

// CodecDecodeSelf reads them, equal ones as one.
func (c *Counts) CodecDecodeSelf(d *codec.Decoder) { *c = *sharedCounts.Decode(form(d)) }

func form(d *codec.Decoder) (r codec.Raw) {
	d.MustDecode(&r)
	return r
}

// CheckShared is an error that tells of a shared value which somebody has changed: for tests.
func CheckShared() error {
	for what, changed := range map[string]func() ([]byte, error){"group": sharedGroups.Changed, "tasks": sharedTasks.Changed, "counts": sharedCounts.Changed} {
		if form, err := changed(); form != nil || err != nil {
			return fmt.Errorf("the shared %s that was read as %q was changed, %v", what, form, err)
		}
	}
	return nil
}
