// Package jsonformtest helps to hold what forms write to what encoding/json does.
package jsonformtest

import (
	"bytes"
	"encoding/json"
	"reflect"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/jsonform"
)

// Encoded is what encoding/json makes of a value, without escapes for HTML; "" = it refuses it.
func Encoded(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return ""
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// Written is what somebody writes; "" = with an error.
func Written(write func(*jsonform.Writer)) string {
	var w jsonform.Writer
	write(&w)
	if w.Err() != nil {
		return ""
	}
	return w.String()
}

// Draw draws all that the value v points to consists of. What lists and maps have is never nil. Values of the types in own are drawn by these.
func Draw(t *rapid.T, v any, own map[reflect.Type]func(*rapid.T) any) {
	drawer{t, own}.into(reflect.ValueOf(v).Elem(), reflect.TypeOf(v).Elem().Name())
}

type drawer struct {
	*rapid.T
	own map[reflect.Type]func(*rapid.T) any
}

func (t drawer) into(v reflect.Value, name string) {
	if own, ok := t.own[v.Type()]; ok {
		v.Set(reflect.ValueOf(own(t.T)))
		return
	}
	some := func() bool { return rapid.Bool().Draw(t.T, name+" is there") }
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-z0-9-]{1,12}`), rapid.String()).Draw(t.T, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t.T, name))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t.T, name))
	case reflect.Uint64:
		v.SetUint(rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64()).Draw(t.T, name))
	case reflect.Float64:
		v.SetFloat(rapid.Float64().Draw(t.T, name))
	case reflect.Pointer:
		if some() {
			t.element(v, name)
		}
	case reflect.Slice:
		if some() {
			v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 2).Draw(t.T, name+" length"), 2))
			for i := range v.Len() {
				t.element(v.Index(i), name)
			}
		}
	case reflect.Map:
		if some() {
			v.Set(reflect.MakeMap(v.Type()))
			for range rapid.IntRange(0, 3).Draw(t.T, name+" length") {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				t.into(key, name+" key")
				t.element(value, name)
				v.SetMapIndex(key, value)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			t.into(v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	default:
		t.Fatalf("%s is a %s, which cannot be drawn", name, v.Kind())
	}
}

// element draws what is not nil.
func (t drawer) element(v reflect.Value, name string) {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	t.into(v, name)
}
