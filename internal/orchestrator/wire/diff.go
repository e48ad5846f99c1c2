package wire

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
)

// Types of differences, as Nomad's clients know them.
const (
	diffNone    = "None"
	diffAdded   = "Added"
	diffDeleted = "Deleted"
	diffEdited  = "Edited"
)

// Diff says what differs between two versions of a job; nil = there is no such version. Both are compared in their form on the wire, so that every field that a
// user can set is in it, and what is equal is left out, but for groups and tasks, which are all named.
func Diff(before, after *model.Job) *api.JobDiff {
	x, y := JobOut(before), JobOut(after)
	if x == nil {
		x = &api.Job{}
	}
	if y == nil {
		y = &api.Job{}
	}
	d := &api.JobDiff{ID: cmp.Or(val(y.ID), val(x.ID))}
	d.Fields, d.Objects = structs(reflect.ValueOf(*x), reflect.ValueOf(*y))
	for _, name := range names(x.TaskGroups, y.TaskGroups, groupName) {
		d.TaskGroups = append(d.TaskGroups, diffGroups(name, named(x.TaskGroups, name, groupName), named(y.TaskGroups, name, groupName)))
	}
	changed := len(d.Fields)+len(d.Objects) > 0 || slices.ContainsFunc(d.TaskGroups, func(g *api.TaskGroupDiff) bool { return g.Type != diffNone })
	d.Type = kindOf(before == nil, after == nil, changed)
	return d
}

func diffGroups(name string, x, y *api.TaskGroup) *api.TaskGroupDiff {
	d := &api.TaskGroupDiff{Name: name}
	none := [2]bool{x == nil, y == nil}
	if x == nil {
		x = &api.TaskGroup{}
	}
	if y == nil {
		y = &api.TaskGroup{}
	}
	d.Fields, d.Objects = structs(reflect.ValueOf(*x), reflect.ValueOf(*y))
	for _, name := range names(x.Tasks, y.Tasks, taskName) {
		d.Tasks = append(d.Tasks, diffTasks(name, named(x.Tasks, name, taskName), named(y.Tasks, name, taskName)))
	}
	changed := len(d.Fields)+len(d.Objects) > 0 || slices.ContainsFunc(d.Tasks, func(t *api.TaskDiff) bool { return t.Type != diffNone })
	d.Type = kindOf(none[0], none[1], changed)
	return d
}

func diffTasks(name string, x, y *api.Task) *api.TaskDiff {
	d := &api.TaskDiff{Name: name}
	none := [2]bool{x == nil, y == nil}
	if x == nil {
		x = &api.Task{}
	}
	if y == nil {
		y = &api.Task{}
	}
	d.Fields, d.Objects = structs(reflect.ValueOf(*x), reflect.ValueOf(*y))
	d.Type = kindOf(none[0], none[1], len(d.Fields)+len(d.Objects) > 0)
	return d
}

func kindOf(noOld, noNew, changed bool) string {
	switch {
	case noOld && !noNew:
		return diffAdded
	case noNew && !noOld:
		return diffDeleted
	case changed:
		return diffEdited
	}
	return diffNone
}

func groupName(g *api.TaskGroup) string { return val(g.Name) }
func taskName(t *api.Task) string       { return t.Name }

// names are those of two lists together, sorted.
func names[T any](x, y []*T, name func(*T) string) []string {
	var out []string
	for _, list := range [][]*T{x, y} {
		for _, v := range list {
			out = append(out, name(v))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func named[T any](list []*T, want string, name func(*T) string) *T {
	for _, v := range list {
		if name(v) == want {
			return v
		}
	}
	return nil
}

// unlike are fields that are compared elsewhere, or say nothing of what a user asks for.
var unlike = map[reflect.Type]map[string]bool{
	reflect.TypeFor[api.Job](): {
		"ID": true, "TaskGroups": true, "Status": true, "StatusDescription": true, "Stable": true, "Version": true, "SubmitTime": true, "CreateIndex": true,
		"ModifyIndex": true, "JobModifyIndex": true, "NomadTokenID": true, "VersionTag": true, "Payload": true, "ConsulToken": true, "VaultToken": true,
		"Dispatched": true, "DispatchIdempotencyToken": true,
	},
	reflect.TypeFor[api.TaskGroup](): {"Name": true, "Tasks": true},
	reflect.TypeFor[api.Task]():      {"Name": true},
}

// singular are the names that clients know lists of objects by, where it is not the name of the field.
var singular = map[string]string{
	"Constraints": "Constraint", "Affinities": "Affinity", "Spreads": "Spread", "SpreadTarget": "SpreadTarget", "Networks": "Network", "Services": "Service",
	"Checks": "Check", "Devices": "Device", "Templates": "Template", "VolumeMounts": "VolumeMount", "DynamicPorts": "Dynamic Port",
	"ReservedPorts": "Static Port", "Volumes": "Volume",
}

// structs compares two structs of one type, field by field.
func structs(x, y reflect.Value) (fields []*api.FieldDiff, objects []*api.ObjectDiff) {
	for i := range x.NumField() {
		f := x.Type().Field(i)
		if !f.IsExported() || unlike[x.Type()][f.Name] {
			continue
		}
		fs, os := values(f.Name, x.Field(i), y.Field(i))
		fields, objects = append(fields, fs...), append(objects, os...)
	}
	slices.SortStableFunc(fields, func(a, b *api.FieldDiff) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(objects, func(a, b *api.ObjectDiff) int { return cmp.Compare(a.Name, b.Name) })
	return fields, objects
}

// values compares what a field holds.
func values(name string, x, y reflect.Value) (fields []*api.FieldDiff, objects []*api.ObjectDiff) {
	object := func(name string, x, y reflect.Value) {
		if d := diffObjects(name, x, y); d != nil {
			objects = append(objects, d)
		}
	}
	switch t := x.Type(); {
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		object(name, indirect(x), indirect(y))
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Interface:
		d := &api.ObjectDiff{Name: name, Fields: flatDiff(flatten("", x), flatten("", y))}
		if d.Type = kindOf(x.Len() == 0, y.Len() == 0, len(d.Fields) > 0); d.Type != diffNone {
			objects = append(objects, d)
		}
	case t.Kind() == reflect.Map && (t.Elem().Kind() == reflect.Pointer || t.Elem().Kind() == reflect.Struct):
		for _, k := range keysOf(x, y) {
			object(fmt.Sprintf("%s[%s]", cmp.Or(singular[name], name), k), at(x, k), at(y, k))
		}
	case t.Kind() == reflect.Map:
		fields = flatDiff(flatten(name, x), flatten(name, y))
	case t.Kind() == reflect.Slice && !scalar(t.Elem()):
		objects = diffLists(cmp.Or(singular[name], name), x, y)
	case t.Kind() == reflect.Slice:
		if d := diffSets(name, x, y); d != nil {
			objects = append(objects, d)
		}
	default:
		fields = field(name, text(x), text(y))
	}
	return fields, objects
}

func scalar(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() != reflect.Struct && t.Kind() != reflect.Map && t.Kind() != reflect.Slice
}

// indirect follows a pointer; an invalid value stands for nil.
func indirect(v reflect.Value) reflect.Value {
	for v.IsValid() && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) {
		if v.IsNil() {
			return reflect.Value{}
		}
		v = v.Elem()
	}
	return v
}

// diffObjects compares two structs, of which an invalid one is not there; nil = they are equal.
func diffObjects(name string, x, y reflect.Value) *api.ObjectDiff {
	if !x.IsValid() && !y.IsValid() {
		return nil
	}
	d := &api.ObjectDiff{Name: name, Type: kindOf(!x.IsValid(), !y.IsValid(), true)}
	if !x.IsValid() {
		x = reflect.Zero(y.Type())
	}
	if !y.IsValid() {
		y = reflect.Zero(x.Type())
	}
	if x.Type().PkgPath() == "time" {
		d.Fields = field(name, text(x), text(y))
	} else {
		d.Fields, d.Objects = structs(x, y)
	}
	if d.Type == diffEdited && len(d.Fields)+len(d.Objects) == 0 {
		return nil
	}
	return d
}

// diffLists compares lists of objects: those with a name by it, others as a set.
func diffLists(name string, x, y reflect.Value) (out []*api.ObjectDiff) {
	olds, news := keyed(x), keyed(y)
	for _, k := range sortedKeys(olds) {
		if d := diffObjects(name, olds[k], news[k]); d != nil {
			out = append(out, d)
		}
	}
	for _, k := range sortedKeys(news) {
		if _, ok := olds[k]; !ok {
			out = append(out, diffObjects(name, reflect.Value{}, news[k]))
		}
	}
	return out
}

// keyed finds the elements of a list by their name, or by their whole content; equal ones are told apart by number.
func keyed(list reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	for i := range list.Len() {
		v := indirect(list.Index(i))
		if !v.IsValid() {
			continue
		}
		k := ""
		for _, f := range []string{"Name", "Label"} {
			if n := v.FieldByName(f); n.IsValid() && k == "" {
				k = text(n)
			}
		}
		if k == "" {
			data, _ := json.Marshal(v.Interface())
			k = string(data)
		}
		for n := 2; out[k].IsValid(); n++ {
			k = fmt.Sprint(k, "#", n)
		}
		out[k] = v
	}
	return out
}

// diffSets compares lists of plain values as sets.
func diffSets(name string, x, y reflect.Value) *api.ObjectDiff {
	count := map[string]int{}
	for i := range y.Len() {
		count[text(y.Index(i))]++
	}
	for i := range x.Len() {
		count[text(x.Index(i))]--
	}
	d := &api.ObjectDiff{Name: name}
	for _, v := range sortedKeys(count) {
		switch n := count[v]; {
		case n > 0:
			d.Fields = append(d.Fields, &api.FieldDiff{Type: diffAdded, Name: name, New: v})
		case n < 0:
			d.Fields = append(d.Fields, &api.FieldDiff{Type: diffDeleted, Name: name, Old: v})
		}
	}
	if len(d.Fields) == 0 {
		return nil
	}
	d.Type = kindOf(x.Len() == 0, y.Len() == 0, true)
	return d
}

func keysOf(x, y reflect.Value) []string {
	seen := map[string]bool{}
	for _, m := range []reflect.Value{x, y} {
		for _, k := range m.MapKeys() {
			seen[k.String()] = true
		}
	}
	return sortedKeys(seen)
}

func at(m reflect.Value, k string) reflect.Value {
	return indirect(m.MapIndex(reflect.ValueOf(k).Convert(m.Type().Key())))
}

// flatten names all plain values in a map, however deep.
func flatten(prefix string, v reflect.Value) map[string]string {
	out := map[string]string{}
	var walk func(string, reflect.Value)
	walk = func(path string, v reflect.Value) {
		v = indirect(v)
		switch {
		case !v.IsValid():
		case v.Kind() == reflect.Map:
			for _, k := range v.MapKeys() {
				key := fmt.Sprint(k.Interface())
				if path != "" {
					key = fmt.Sprintf("%s[%s]", path, key)
				}
				walk(key, v.MapIndex(k))
			}
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
			}
		default:
			out[path] = text(v)
		}
	}
	walk(prefix, v)
	return out
}

func flatDiff(x, y map[string]string) (out []*api.FieldDiff) {
	seen := map[string]bool{}
	for k := range x {
		seen[k] = true
	}
	for k := range y {
		seen[k] = true
	}
	for _, k := range sortedKeys(seen) {
		_, inOld := x[k]
		_, inNew := y[k]
		if inOld != inNew || x[k] != y[k] {
			out = append(out, &api.FieldDiff{Type: kindOf(!inOld, !inNew, true), Name: k, Old: x[k], New: y[k]})
		}
	}
	return out
}

func field(name, x, y string) []*api.FieldDiff {
	if x == y {
		return nil
	}
	return []*api.FieldDiff{{Type: kindOf(x == "", y == "", true), Name: name, Old: x, New: y}}
}

// text is a plain value as it is shown; "" = there is none.
func text(v reflect.Value) string {
	v = indirect(v)
	if !v.IsValid() {
		return ""
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
	return fmt.Sprint(v.Interface())
}
