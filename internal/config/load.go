package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Notes is what the log should say about how the configuration came about.
type Notes struct {
	Missing bool     // there is no file
	Ignored []string // keys of Poseidon that have no meaning here
	Doubts  []string // what is ignored and may be a mistake: keys that nobody knows, and variables that cannot be read
}

// Load reads the file, if there is one, and the environment (in the form of os.Environ).
func Load(path string, environ []string) (Config, Notes, error) {
	c, notes := Default(), Notes{}
	var problems []error
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		notes.Missing = true
	case err != nil:
		return c, notes, fmt.Errorf("configuration: %w", err)
	default:
		var doc yaml.Node
		if err := yaml.Unmarshal(data, &doc); err != nil {
			return c, notes, fmt.Errorf("configuration %s: %w", path, err)
		}
		if len(doc.Content) > 0 {
			problems = append(problems, notes.file(reflect.ValueOf(&c).Elem(), "", doc.Content[0])...)
		}
	}
	notes.environment(&c, environ)
	if c.Tracing, err = c.Tracing.environ(environ); err != nil {
		problems = append(problems, err)
	}
	if c.Server.LoggingFilterToken == "" {
		c.Server.LoggingFilterToken = Default().Server.LoggingFilterToken
	}
	problems = append(problems, c.check()...)
	slices.Sort(notes.Ignored)
	slices.Sort(notes.Doubts)
	return c, notes, errors.Join(problems...)
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// file fills v from a mapping.
func (n *Notes) file(v reflect.Value, prefix string, node *yaml.Node) (problems []error) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s (line %d): a mapping is needed here", prefix, node.Line)}
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := join(prefix, key.Value)
		if foreign[path] {
			n.Ignored = append(n.Ignored, path)
			continue
		}
		f, ok := field(v, key.Value)
		if !ok {
			n.Doubts = append(n.Doubts, fmt.Sprintf("%s (line %d): there is no such key%s", path, key.Line, meant(path)))
			continue
		}
		if f.Kind() == reflect.Struct {
			problems = append(problems, n.file(f, path, value)...)
		} else if err := scalar(f, value); err != nil {
			problems = append(problems, fmt.Errorf("%s (line %d): %w", path, value.Line, err))
		}
	}
	return problems
}

func field(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == name && tag != unwritten {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func scalar(f reflect.Value, node *yaml.Node) error {
	if node.Kind == yaml.SequenceNode && f.Kind() == reflect.Slice {
		f.Set(reflect.Zero(f.Type()))
		for _, item := range node.Content {
			f.Set(reflect.Append(f, reflect.ValueOf(item.Value)))
		}
		return nil
	}
	if node.Kind != yaml.ScalarNode {
		return errors.New("a single value is needed here")
	}
	if node.Tag == "!!null" {
		return nil
	}
	return set(f, node.Value)
}

// set parses a value into a field. A list gets its words appended.
func set(f reflect.Value, s string) error {
	switch {
	case f.Kind() == reflect.String:
		f.SetString(s)
	case f.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		f.SetBool(b)
	case f.CanUint():
		u, err := strconv.ParseUint(s, 10, f.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number between 0 and %d", s, ^uint64(0)>>(64-f.Type().Bits()))
		}
		f.SetUint(u)
	case f.CanFloat():
		x, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		f.SetFloat(x)
	case f.Kind() == reflect.Slice:
		for _, word := range strings.Fields(strings.Trim(s, `"`)) {
			f.Set(reflect.Append(f, reflect.ValueOf(word)))
		}
	default:
		panic("config: fields of type " + f.Type().String() + " cannot be configured")
	}
	return nil
}

// prefixes of environment variables; later ones win.
var prefixes = []string{"POSEIDON_", "ROCKPOOL_"}

// environment fills c from variables. Those that belong to no section of ours are somebody else's, such as the ones a
// container platform sets for a service of our name. What cannot be read is ignored, as Poseidon does.
func (n *Notes) environment(c *Config, environ []string) {
	leaves := map[string]reflect.Value{}
	walk(reflect.ValueOf(c).Elem(), "", func(path string, f reflect.Value) {
		leaves[strings.ToUpper(strings.ReplaceAll(path, ".", "_"))] = f
	})
	sections := map[string]bool{}
	for i := range reflect.TypeFor[Config]().NumField() {
		sections[strings.ToUpper(reflect.TypeFor[Config]().Field(i).Tag.Get("yaml"))] = true
	}
	environ = slices.Sorted(slices.Values(environ))
	for _, prefix := range prefixes {
		for _, kv := range environ {
			name, value, _ := strings.Cut(kv, "=")
			key, ours := strings.CutPrefix(name, prefix)
			section, _, _ := strings.Cut(key, "_")
			if !ours {
				continue
			}
			if foreign[strings.ToLower(section)] || foreign[strings.ToLower(strings.ReplaceAll(key, "_", "."))] {
				n.Ignored = append(n.Ignored, name)
				continue
			}
			f, ok := leaves[key]
			switch {
			case !ok && sections[section]:
				n.Doubts = append(n.Doubts, name+": there is no such key"+meant(strings.ToLower(strings.ReplaceAll(key, "_", "."))))
			case ok:
				if err := set(f, value); err != nil {
					n.Doubts = append(n.Doubts, fmt.Sprintf("%s: %v", name, err))
				}
			}
		}
	}
}

// maxMisspelt is how many letters a key that is taken for another may differ by.
const maxMisspelt = 2

// meant says which key may be meant by one that nobody knows; "" = none is like it.
func meant(path string) string {
	best, least := "", maxMisspelt+1
	c := Default()
	walk(reflect.ValueOf(&c).Elem(), "", func(known string, _ reflect.Value) {
		if d := distance(path, known); d < least || d == least && known < best {
			best, least = known, d
		}
	})
	if least > maxMisspelt {
		return ""
	}
	return " (is " + best + " meant?)"
}

// distance is how many letters have to be put in, left out or exchanged to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		corner := row[0]
		row[0] = i + 1
		for j := range b {
			exchanged := corner
			if a[i] != b[j] {
				exchanged++
			}
			corner = row[j+1]
			row[j+1] = min(exchanged, corner+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// unwritten is the tag of a field that has no key.
const unwritten = "-"

// walk visits every key.
func walk(v reflect.Value, prefix string, visit func(path string, f reflect.Value)) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag.Get("yaml")
		if tag == unwritten {
			continue
		}
		path := join(prefix, tag)
		if f := v.Field(i); f.Kind() == reflect.Struct {
			walk(f, path, visit)
		} else {
			visit(path, f)
		}
	}
}

// Keys are all keys with their defaults.
func Keys() map[string]any {
	c := Default()
	keys := map[string]any{}
	walk(reflect.ValueOf(&c).Elem(), "", func(path string, f reflect.Value) { keys[path] = f.Interface() })
	return keys
}
