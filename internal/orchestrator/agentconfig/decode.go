package agentconfig

import (
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"time"
)

// decoder fills a Config from the entries of one file.
type decoder struct {
	file     string
	problems []error
}

func (d *decoder) fail(line int, format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf("%s:%d: %s", d.file, line, fmt.Sprintf(format, args...)))
}

func (d *decoder) into(c *Config, tree []entry) { d.block(reflect.ValueOf(c).Elem(), "", tree) }

func dotted(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// fieldOf is the field of v that a key fills.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("key") == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func (d *decoder) block(v reflect.Value, prefix string, tree []entry) {
	for _, e := range tree {
		path := dotted(prefix, e.key)
		f, ok := fieldOf(v, e.key)
		switch {
		case !ok && foreign[path] != "":
			d.fail(e.line, "%s is not offered: %s", path, foreign[path])
		case !ok:
			d.unknown(v, prefix, e)
		default:
			d.entry(f, path, e)
		}
	}
}

// unknown names the nearest key of the same block.
func (d *decoder) unknown(v reflect.Value, prefix string, e entry) {
	best, distance := "", 1+max(2, len(e.key)/3)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("key")
		if n := edits(e.key, name); n < distance {
			best, distance = name, n
		}
	}
	if best == "" {
		d.fail(e.line, "there is no key %s", dotted(prefix, e.key))
		return
	}
	d.fail(e.line, "there is no key %s, did you mean %s?", dotted(prefix, e.key), dotted(prefix, best))
}

func (d *decoder) entry(f reflect.Value, path string, e entry) {
	switch f.Kind() {
	case reflect.Struct:
		switch {
		case e.block == nil && e.value != nil || len(e.labels) > 0:
			d.fail(e.line, "%s is a block without a name: %s { … }", path, e.key)
		default:
			d.block(f, path, e.block)
		}
	case reflect.Map:
		d.mapping(f, path, e)
	default:
		if e.block != nil {
			d.fail(e.line, "%s is a value, not a block: %s = …", path, e.key)
		} else if err := assign(f, e.value); err != nil {
			d.fail(e.line, "%s: %v", path, err)
		}
	}
}

func (d *decoder) mapping(f reflect.Value, path string, e entry) {
	if e.block == nil && e.value == nil && len(e.labels) == 0 {
		return // null
	}
	if e.block == nil || len(e.labels) > 1 {
		d.fail(e.line, "%s needs names: %s { name = … }", path, e.key)
		return
	}
	if f.IsNil() {
		f.Set(reflect.MakeMap(f.Type()))
	}
	items := e.block
	if len(e.labels) == 1 {
		items = []entry{{key: e.labels[0], line: e.line, block: e.block}}
	}
	for _, item := range items {
		v := reflect.New(f.Type().Elem()).Elem()
		if old := f.MapIndex(reflect.ValueOf(item.key)); old.IsValid() {
			v.Set(old)
		}
		d.entry(v, dotted(path, item.key), item)
		f.SetMapIndex(reflect.ValueOf(item.key), v)
	}
}

var durationType = reflect.TypeFor[time.Duration]()

// assign converts a value to a field. nil leaves the field as it is.
func assign(f reflect.Value, v any) error {
	if v == nil {
		return nil
	}
	switch {
	case f.Type() == durationType:
		s, ok := v.(string)
		if !ok {
			return errors.New("a duration such as \"30s\" is needed here")
		}
		t, err := time.ParseDuration(s)
		if err != nil || t < 0 {
			return fmt.Errorf("%q is not a duration such as \"30s\"", s)
		}
		f.SetInt(int64(t))
	case f.Kind() == reflect.String:
		switch v := v.(type) {
		case string:
			f.SetString(v)
		case *big.Float:
			if v.MantExp(nil) > 64 || v.MantExp(nil) < -64 { // all its digits could be a gigabyte
				return errors.New("this number is no text: write it in quotes")
			}
			f.SetString(v.Text('f', -1))
		default:
			return errors.New("a text is needed here")
		}
	case f.Kind() == reflect.Bool:
		b, ok := v.(bool)
		if !ok {
			return errors.New("true or false is needed here")
		}
		f.SetBool(b)
	case f.CanInt():
		n, ok := v.(*big.Float)
		if !ok {
			return errors.New("a whole number is needed here")
		}
		i, exact := n.Int64()
		if exact != big.Exact || f.OverflowInt(i) {
			return errors.New("this is not a whole number that fits")
		}
		f.SetInt(i)
	case f.CanFloat():
		n, ok := v.(*big.Float)
		if !ok {
			return errors.New("a number is needed here")
		}
		x, _ := n.Float64()
		f.SetFloat(x)
	case f.Kind() == reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			return errors.New("a list is needed here: [\"…\"]")
		}
		out := reflect.MakeSlice(f.Type(), len(list), len(list))
		for i, x := range list {
			if err := assign(out.Index(i), x); err != nil {
				return err
			}
		}
		f.Set(out)
	default:
		panic("agentconfig: fields of type " + f.Type().String() + " cannot be configured")
	}
	return nil
}

// edits is the number of letters to insert, remove or change to make one word of another (Levenshtein, two rows).
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j+1]+1, row[j]+1, prev[j]+cost)
		}
		prev = row
	}
	return prev[len(b)]
}

// Keys are all keys with their values in c, by their dotted paths. Maps are one key.
func (c Config) Keys() map[string]any {
	out := map[string]any{}
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			path := dotted(prefix, v.Type().Field(i).Tag.Get("key"))
			if f := v.Field(i); f.Kind() == reflect.Struct {
				walk(f, path)
			} else {
				out[path] = f.Interface()
			}
		}
	}
	walk(reflect.ValueOf(c), "")
	return out
}

// secrets are the keys that nobody is shown.
var secrets = []string{"server.encrypt", "server.join_token", "client.join_token", "tracing.headers"}

// empty reports whether there is nothing in a text or a list.
func empty(v any) bool { return reflect.ValueOf(v).Len() == 0 }

// Public is the configuration as clients may see it: a tree of keys, with secrets hidden.
func (c Config) Public() map[string]any {
	tree := map[string]any{}
	for path, v := range c.Keys() {
		if slices.Contains(secrets, path) && !empty(v) {
			v = "[redacted]"
		}
		if t, ok := v.(time.Duration); ok {
			v = t.String()
		}
		at := tree
		parts := strings.Split(path, ".")
		for _, p := range parts[:len(parts)-1] {
			next, _ := at[p].(map[string]any)
			if next == nil {
				next = map[string]any{}
				at[p] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = v
	}
	return tree
}
