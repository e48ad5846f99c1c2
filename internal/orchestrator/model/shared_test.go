package model_test

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/msgpack"
)

// What shares parts in memory is written as if it did not, which is how it is on disks since before it did.
func TestSharedTypesAreWrittenAsPlainOnes(t *testing.T) {
	groups := []*model.TaskGroup{{Name: "a", Tasks: []*model.Task{{Name: "t", Config: map[string]any{"k": "v"}}}}, {Name: "b"}}
	tasks := map[string]*model.AllocatedTask{"b": {CPU: 1}, "a": {Devices: []model.AllocatedDevice{{Name: "x"}}}}
	for _, c := range []struct{ shared, plain any }{
		{model.TaskGroups(groups), groups}, {model.TaskGroups(nil), []*model.TaskGroup(nil)}, {model.TaskGroups{}, []*model.TaskGroup{}},
		{model.AllocatedTasks(tasks), tasks}, {model.AllocatedTasks(nil), map[string]*model.AllocatedTask(nil)}, {model.AllocatedTasks{}, map[string]*model.AllocatedTask{}},
		{model.Counts{"b": 1, "a": 2}, map[string]int{"b": 1, "a": 2}}, {model.Counts(nil), map[string]int(nil)}, {model.Counts{}, map[string]int{}},
	} {
		shared, err := msgpack.Append(nil, struct{ V any }{c.shared})
		if err != nil {
			t.Fatal(err)
		}
		plain, err := msgpack.Append(nil, struct{ V any }{c.plain})
		if err != nil {
			t.Fatal(err)
		}
		if string(shared) != string(plain) {
			t.Errorf("%T is written as %x, not as %x", c.shared, shared, plain)
		}
		form, _ := msgpack.Append(nil, c.shared)
		got := reflect.New(reflect.TypeOf(c.shared))
		if err := msgpack.Decode(form, got.Interface()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.shared, got.Elem().Interface()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestJobsShareEqualGroups(t *testing.T) {
	read := func(j *model.Job) *model.Job {
		b, err := msgpack.Append(nil, j)
		if err != nil {
			t.Fatal(err)
		}
		got := new(model.Job)
		if err := msgpack.Decode(b, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(j, got); diff != "" {
			t.Error(diff)
		}
		return got
	}
	job := func(id, meta string) *model.Job {
		return &model.Job{ID: id, TaskGroups: model.TaskGroups{
			{Name: "work", Count: 1, Tasks: []*model.Task{{Name: "t", Config: map[string]any{"image": "x"}}}}, {Name: "notes", Meta: map[string]string{"of": meta}},
		}}
	}
	one, two := read(job("one", "a")), read(job("two", "b"))
	if one.TaskGroups[0] != two.TaskGroups[0] || one.TaskGroups[1] == two.TaskGroups[1] {
		t.Error("equal groups are two, or different ones are one")
	}
	alloc := func(b []byte, err error) *model.Allocation {
		a := new(model.Allocation)
		if err == nil {
			err = msgpack.Decode(b, a)
		}
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	tasks := model.AllocatedTasks{"t": {CPU: 7}}
	a := alloc(msgpack.Append(nil, &model.Allocation{ID: "a", Resources: model.AllocatedResources{Tasks: tasks}}))
	b := alloc(msgpack.Append(nil, &model.Allocation{ID: "b", Resources: model.AllocatedResources{Tasks: tasks}}))
	if a.Resources.Tasks["t"] != b.Resources.Tasks["t"] || a.Resources.Tasks["t"] == tasks["t"] {
		t.Error("equal parts are not shared by what was read")
	}
	if err := model.CheckShared(); err != nil {
		t.Error(err)
	}
	damaged, err := msgpack.Append(nil, struct{ TaskGroups []any }{[]any{"no group"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := msgpack.Decode(damaged, new(model.Job)); err == nil {
		t.Error("a group that is none is read")
	}
}
