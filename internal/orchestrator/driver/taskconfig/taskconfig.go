// Package taskconfig reads the values of a task's driver configuration. They arrive as JSON, or as HCL that was turned into
// it, so a number may be a string and a block a list with one map in it. Every error says what is wanted; the caller names
// the key.
package taskconfig

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"rockpool/internal/fault"
)

// Table says which keys a driver's configuration C may hold, and what each sets.
type Table[C any] struct {
	Driver  string
	Keys    map[string]func(c *C, v any) error
	Refused map[string]string // keys that are known and not offered, and why
}

// Parse fills a configuration in. Keys are taken in alphabetical order. The error names the key.
func (t Table[C]) Parse(into *C, raw map[string]any) error {
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		set, known := t.Keys[k]
		var err error
		switch why, no := t.Refused[k]; {
		case no:
			err = errors.New(why)
		case !known:
			err = fmt.Errorf("not known; allowed are %s", strings.Join(slices.Sorted(maps.Keys(t.Keys)), ", "))
		default:
			err = set(into, raw[k])
		}
		if err != nil {
			return t.Wrong(k, "%w", err)
		}
	}
	return nil
}

// Wrong is the error of a configuration whose key is wrong.
func (t Table[C]) Wrong(key, format string, args ...any) error {
	return fault.New(fault.Invalid, "driver %s: config key %q: %v", t.Driver, key, fmt.Errorf(format, args...))
}

// Text takes a string.
func Text(into *string, v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("%v is not a string", v)
	}
	*into = s
	return nil
}

// AbsolutePath takes a path that starts at the root.
func AbsolutePath(into *string, v any) error {
	if err := Text(into, v); err != nil {
		return err
	}
	if !path.IsAbs(*into) {
		return errors.New("an absolute path is wanted")
	}
	return nil
}

// Flag takes true or false.
func Flag(into *bool, v any) error {
	switch v := v.(type) {
	case bool:
		*into = v
		return nil
	case string:
		b, err := strconv.ParseBool(v)
		*into = b
		return err
	}
	return fmt.Errorf("%v is neither true nor false", v)
}

// Positive takes a whole number above zero.
func Positive(into *int64, v any) error {
	switch v := v.(type) {
	case int:
		*into = int64(v)
	case int64:
		*into = v
	case float64:
		*into = int64(v)
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", v)
		}
		*into = n
	default:
		return fmt.Errorf("%v is not a number", v)
	}
	if *into <= 0 {
		return fmt.Errorf("%d is not positive", *into)
	}
	return nil
}

// Texts takes a list of strings, and adds them.
func Texts(into *[]string, v any) error {
	switch v := v.(type) {
	case []string:
		*into = append(*into, v...)
		return nil
	case []any:
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return fmt.Errorf("%v is not a string", x)
			}
			*into = append(*into, s)
		}
		return nil
	}
	return errors.New("a list of strings is wanted")
}

// Block takes a block, which arrives as a map or as a list with one in it.
func Block(v any) (map[string]any, error) {
	if list, ok := v.([]any); ok && len(list) == 1 {
		v = list[0]
	}
	if list, ok := v.([]map[string]any); ok && len(list) == 1 {
		v = list[0]
	}
	block, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("a block is wanted")
	}
	return block, nil
}

// Limit takes one limit of a ulimit block: a number, or soft:hard.
func Limit(v any) (soft, hard int64, err error) {
	low, high := v, v
	if s, ok := v.(string); ok {
		if before, after, both := strings.Cut(s, ":"); both {
			low, high = before, after
		}
	}
	if err = Positive(&soft, low); err == nil {
		err = Positive(&hard, high)
	}
	if err == nil && soft > hard {
		err = fmt.Errorf("the soft limit %d is above the hard limit %d", soft, hard)
	}
	return soft, hard, err
}
