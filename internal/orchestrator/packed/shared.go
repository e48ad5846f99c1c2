package packed

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/model"
)

// Most jobs are like others but for their id, and so are their allocations. What they have alike they share once it was read, from the log, a snapshot or a server.
var (
	sharedLists   shared[groupList]
	sharedGroups  shared[model.TaskGroup]
	sharedPlaces  shared[[]string] // datacenters
	sharedScores  shared[map[string]float64]
	sharedTasks   shared[map[string]*model.AllocatedTask]
	sharedCounts  shared[map[string]int]
	sharedDetails shared[map[string]string]
	sharedWords   shared[string]
	sharedNodes   shared[string] // ids by their bytes
)

// longestWord is how many bytes a text may have of which it is worthwhile to look whether there is one already.
const longestWord = 64

// wordOf is the text of some bytes, which is one value with others that were asked for lately. It is for what takes few values: states, types, names of nodes.
func wordOf(b []byte) string {
	if len(b) > longestWord {
		return string(b)
	}
	if v := sharedWords.known(b, nil); v != nil {
		return *v
	}
	s := string(b)
	return *sharedWords.known(b, &s)
}

// Words makes each text one value with those that equal it.
func Words(texts ...*string) {
	for _, s := range texts {
		if *s != "" {
			*s = wordOf([]byte(*s))
		}
	}
}

// Counts is a value that equals m, and is one with others that do. Nobody may change it, nor m.
func Counts(m map[string]int) map[string]int {
	if len(m) == 0 {
		return m
	}
	form, err := Append(nil, m)
	if err != nil || len(form) > longestShared {
		return m
	}
	return *sharedCounts.known(form, &m)
}

// JobIn reads a job, whose groups may be those of other jobs too. It is written as the job that it is.
type JobIn struct{ *model.Job }

// CodecEncodeSelf writes the job.
func (j *JobIn) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode(j.Job) }

// CodecDecodeSelf reads it.
func (j *JobIn) CodecDecodeSelf(d *codec.Decoder) {
	in := struct {
		*model.Job
		TaskGroups  groupsIn // in place of the job's
		Datacenters placesIn
	}{Job: new(model.Job)}
	d.MustDecode(&in)
	in.Job.TaskGroups, in.Job.Datacenters = in.TaskGroups, in.Datacenters
	j.Job = in.Job
	if j.Name == j.ID {
		j.Name = j.ID
	}
	Words(&j.Region, &j.Namespace, &j.Type, &j.NodePool, &j.Status, &j.StatusDescription)
}

// readAlloc reads an allocation, readMetric why it is where it is. What those of a group have alike may be that of others too.
func readAlloc(form []byte) (*model.Allocation, error) {
	a := new(model.Allocation)
	in := struct {
		*model.Allocation
		Resources struct {
			*model.AllocatedResources
			Tasks tasksIn
		}
	}{Allocation: a}
	in.Resources.AllocatedResources = &a.Resources
	err := Decode(form, &in)
	a.Resources.Tasks = in.Resources.Tasks
	Words(&a.Namespace, &a.TaskGroup, &a.DesiredStatus, &a.DesiredDescription, &a.ClientStatus, &a.ClientDescription)
	return a, err
}

func readMetric(form []byte) (*model.AllocMetric, error) {
	m := new(model.AllocMetric)
	in := struct {
		*model.AllocMetric
		NodesAvailable, ConstraintFiltered, ClassFiltered, DimensionExhausted countsIn
	}{AllocMetric: m}
	err := Decode(form, &in)
	m.NodesAvailable, m.ConstraintFiltered = in.NodesAvailable, in.ConstraintFiltered
	m.ClassFiltered, m.DimensionExhausted = in.ClassFiltered, in.DimensionExhausted
	return m, err
}

// groupsIn, placesIn, tasksIn and countsIn are read with equal ones as one. The types that they stand for are written.
type (
	groupsIn []*model.TaskGroup
	placesIn []string
	tasksIn  map[string]*model.AllocatedTask
	countsIn map[string]int
)

func (g *groupsIn) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode([]*model.TaskGroup(*g)) }
func (p *placesIn) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode([]string(*p)) }
func (t *tasksIn) CodecEncodeSelf(e *codec.Encoder) {
	e.MustEncode(map[string]*model.AllocatedTask(*t))
}
func (c *countsIn) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode(map[string]int(*c)) }

// groupList is the groups of one job, of which others may have some.
type groupList []*model.TaskGroup

func (g *groupList) CodecEncodeSelf(e *codec.Encoder) { e.MustEncode([]*model.TaskGroup(*g)) }
func (g *groupList) CodecDecodeSelf(d *codec.Decoder) {
	var forms []codec.Raw
	d.MustDecode(&forms)
	if forms == nil {
		*g = nil
		return
	}
	*g = make(groupList, len(forms))
	for i, form := range forms {
		if len(form) > 0 { // or it is nil
			(*g)[i] = sharedGroups.read(form)
		}
	}
}

// A list of one group is shared, as most jobs have one; a longer one would be remembered for nothing as soon as one of its groups is the job's own.
func (g *groupsIn) CodecDecodeSelf(d *codec.Decoder) {
	form := formOf(d)
	if len(form) > 0 && form[0] == msgpackListOfOne {
		*g = groupsIn(*sharedLists.read(form))
		return
	}
	var list groupList
	if err := Decode(form, &list); err != nil {
		panic(err)
	}
	*g = groupsIn(list)
}

func (p *placesIn) CodecDecodeSelf(d *codec.Decoder) { *p = *sharedPlaces.read(formOf(d)) }
func (t *tasksIn) CodecDecodeSelf(d *codec.Decoder)  { *t = *sharedTasks.read(formOf(d)) }
func (c *countsIn) CodecDecodeSelf(d *codec.Decoder) { *c = *sharedCounts.read(formOf(d)) }

// Details makes the details of a task's event, of keys and values in turn. Equal ones are one value, which nobody may change: most tasks begin and end like others.
func Details(pairs ...string) map[string]string {
	var buf [512]byte
	form := binary.BigEndian.AppendUint32(append(buf[:0], msgpackMap), uint32(len(pairs)/2))
	for _, text := range pairs {
		if len(form)+len(text) > longestShared { // texts may be one text, named again and again: no form is made of them
			return detailsOf(pairs)
		}
		form = append(binary.BigEndian.AppendUint32(append(form, msgpackText), uint32(len(text))), text...)
	}
	if v := sharedDetails.known(form, nil); v != nil {
		return *v
	}
	m := detailsOf(pairs)
	return *sharedDetails.known(form, &m)
}

func detailsOf(pairs []string) map[string]string {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// First bytes of values whose lengths follow in four, of a number that follows in eight, and of a list of one value.
const msgpackMap, msgpackText, msgpackFloat, msgpackListOfOne = 0xdf, 0xdb, 0xcb, 0x91

// scoresOf is the scores of these names. Equal ones are one value, which nobody may change: a node's go through the same few while it fills and empties.
func scoresOf(names []string, scores []float64) map[string]float64 {
	scored := func() map[string]float64 {
		m := make(map[string]float64, len(names))
		for i, name := range names {
			m[name] = scores[i]
		}
		return m
	}
	var buf [512]byte
	form := binary.BigEndian.AppendUint32(append(buf[:0], msgpackMap), uint32(len(names)))
	for i, name := range names {
		if len(form)+len(name) > longestShared {
			return scored()
		}
		form = append(binary.BigEndian.AppendUint32(append(form, msgpackText), uint32(len(name))), name...)
		form = binary.BigEndian.AppendUint64(append(form, msgpackFloat), math.Float64bits(scores[i]))
	}
	if v := sharedScores.known(form, nil); v != nil {
		return *v
	}
	m := scored()
	return *sharedScores.known(form, &m)
}

func formOf(d *codec.Decoder) (r codec.Raw) {
	d.MustDecode(&r)
	return r
}

// What is remembered of one type. The forms of a type's values are short, and most of those that come within seconds are few. In memory a value may have some ten
// times the bytes of its form.
const (
	mostShared    = 512       // values in each of two generations
	longestShared = 4 << 10   // bytes of the form of one that is
	allShared     = 512 << 10 // bytes of all forms of a generation
)

// shared makes values that are read one after the other from equal forms one value in memory. Thousands of jobs have the same task group, which is most of what a job takes
// and of what its decoding takes. Nobody may change what comes out. The zero value is ready for use by many.
//
// What has not been asked for lately is forgotten: there are two generations, and the older one goes when the younger is full.
type shared[T any] struct {
	mu         sync.Mutex
	young, old map[string]*T // guarded by mu; by form
	bytes      int           // guarded by mu; of the young ones' forms
}

// read is the value of a form. It panics with the error of a form that is none, as a codec.Selfer has to.
func (s *shared[T]) read(form codec.Raw) *T {
	remembered := len(form) <= longestShared
	if remembered {
		if v := s.known(form, nil); v != nil {
			return v
		}
	}
	v := new(T)
	if err := Decode(form, v); err != nil {
		panic(err)
	}
	if !remembered {
		return v
	}
	return s.known(form, v)
}

// known is the value of a form that was read before, or else v, which is remembered unless it is nil.
func (s *shared[T]) known(form []byte, v *T) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.young[string(form)]; first != nil {
		return first
	}
	if first := s.old[string(form)]; first != nil {
		v = first
	}
	if v != nil {
		s.remember(string(form), v)
	}
	return v
}

func (s *shared[T]) remember(form string, v *T) {
	if s.young == nil || len(s.young) >= mostShared || s.bytes+len(form) > allShared {
		s.old, s.young, s.bytes = s.young, map[string]*T{}, 0
	}
	s.young[form] = v
	s.bytes += len(form)
}

// changed is the form of a value that is not what it was read as any more. nil = there is none.
func (s *shared[T]) changed() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, generation := range []map[string]*T{s.old, s.young} {
		for form, v := range generation {
			read := new(T)
			if err := Decode([]byte(form), read); err != nil || !reflect.DeepEqual(read, v) {
				return []byte(form), err
			}
		}
	}
	return nil, nil
}

// CheckShared is an error that tells of a shared value which somebody has changed: for tests.
func CheckShared() error {
	for _, kind := range []struct {
		what    string
		changed func() ([]byte, error)
	}{
		{"group", sharedGroups.changed}, // before lists, which are read by it
		{"groups", sharedLists.changed}, {"datacenters", sharedPlaces.changed}, {"tasks", sharedTasks.changed}, {"counts", sharedCounts.changed},
		{"scores", sharedScores.changed}, {"details", sharedDetails.changed},
	} {
		if form, err := kind.changed(); form != nil || err != nil {
			return fmt.Errorf("the shared %s that was read as %q was changed, %v", kind.what, form, err)
		}
	}
	return nil
}
