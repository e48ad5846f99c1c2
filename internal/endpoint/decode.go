package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
)

var durationType, callerType = reflect.TypeFor[time.Duration](), reflect.TypeFor[Caller]()

// checkTags panics when a request type cannot be decoded, so that the mistake shows when the table is built.
func checkTags[Req any](name string) {
	t := reflect.TypeFor[Req]()
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("endpoint: row %s: request type %s is not a struct", name, t))
	}
	checkFields(name, t)
}

func checkFields(name string, t reflect.Type) {
	for f := range t.Fields() {
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			checkFields(name, f.Type)
			continue
		}
		if _, ok := f.Tag.Lookup("body"); ok {
			continue
		}
		if _, ok := f.Tag.Lookup("caller"); ok && f.Type == callerType {
			continue
		}
		_, p := f.Tag.Lookup("path")
		_, q := f.Tag.Lookup("query")
		_, h := f.Tag.Lookup("header")
		if !p && !q && !h {
			panic(fmt.Sprintf("endpoint: row %s: field %s says nothing of where it comes from", name, f.Name))
		}
		if err := set(reflect.New(f.Type).Elem(), []string{""}); err != nil {
			panic(fmt.Sprintf("endpoint: row %s: field %s: %v", name, f.Name, err))
		}
	}
}

func decode[Req any](r *http.Request, p Policy, id auth.Identity) (Req, error) {
	var req Req
	return req, decodeFields(r, p, Caller{id, p.Scope}, reflect.ValueOf(&req).Elem(), mux.Vars(r), r.URL.Query())
}

func decodeFields(r *http.Request, p Policy, c Caller, v reflect.Value, vars map[string]string, query url.Values) error {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			if err := decodeFields(r, p, c, v.Field(i), vars, query); err != nil {
				return err
			}
		} else if _, ok := f.Tag.Lookup("caller"); ok {
			v.Field(i).Set(reflect.ValueOf(c))
		} else if name, ok := f.Tag.Lookup("path"); ok {
			s, err := url.PathUnescape(vars[name])
			if err == nil {
				err = set(v.Field(i), []string{s})
			}
			if err != nil {
				return fault.New(fault.Invalid, "%s in the path: %v", name, err)
			}
		} else if name, ok := f.Tag.Lookup("query"); ok {
			if err := set(v.Field(i), query[name]); err != nil {
				return fault.New(fault.Invalid, "query parameter %s: %v", name, err)
			}
		} else if name, ok := f.Tag.Lookup("header"); ok {
			if err := set(v.Field(i), r.Header.Values(name)); err != nil {
				return fault.New(fault.Invalid, "header %s: %v", name, err)
			}
		} else if kind := f.Tag.Get("body"); kind == "raw" {
			v.Field(i).Set(reflect.ValueOf(r.Body))
		} else if err := decodeJSON(r, p, v.Field(i).Addr().Interface()); err != nil && !(kind == "optional" && errors.Is(err, errNoBody)) {
			return err
		}
	}
	return nil
}

// errNoBody is the cause where there is nothing at all; a field tagged body:"optional" is left as it is then.
var errNoBody = errors.New("empty body")

const (
	// mostAhead is how many bytes are made ready for a body before any of it has come.
	mostAhead = 16 << 10
	// mostKept is the size up to which what a body was read into is used again.
	mostKept = 64 << 10
)

// bodies are used again, as what decodes itself may not keep the bytes that it is given (encoding/json.Unmarshaler).
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// decodeJSON reads the first JSON value of the body. Content types are not looked at: clients send what they like.
func decodeJSON(r *http.Request, p Policy, into any) error {
	body := bodies.Get().(*bytes.Buffer)
	defer func() {
		if body.Cap() <= mostKept {
			body.Reset()
			bodies.Put(body)
		}
	}()
	body.Grow(bytes.MinRead + int(min(max(r.ContentLength, 0), mostAhead)))
	if _, err := body.ReadFrom(r.Body); err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return fault.New(fault.TooLarge, "the request body is larger than %d bytes", tooLarge.Limit)
		}
		if _, said := errors.AsType[*fault.Error](err); said {
			return err
		}
		return fault.Wrap(fault.Invalid, err, "the request body was cut off")
	}
	var d *json.Decoder // that of a strict policy
	err := guarded(func() error {
		if !p.Strict {
			// Without a copy of the whole. What goes on after its first value is a syntax error then, found before anything is decoded; only a type's own
			// UnmarshalJSON that calls something such an error is asked twice.
			err := json.Unmarshal(body.Bytes(), into)
			if _, syntax := errors.AsType[*json.SyntaxError](err); !syntax {
				return err
			}
		}
		d = json.NewDecoder(bytes.NewReader(body.Bytes()))
		if p.Strict {
			d.DisallowUnknownFields()
		}
		return d.Decode(into)
	})
	if err != nil {
		if errors.Is(err, io.EOF) {
			return fault.Wrap(fault.Invalid, errNoBody, "the request body is empty, but a JSON object is needed")
		}
		return fault.New(fault.Invalid, "%s", err.Error())
	}
	if p.Strict {
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return fault.New(fault.Invalid, "the request body goes on after its first JSON value")
		}
	}
	return nil
}

// guarded decodes a value. Some types of clients' libraries decode themselves in a way that panics where null stands for an object: that is the caller's fault.
func guarded(decode func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the request body has a value where another kind of value is needed, such as null for an object")
		}
	}()
	return decode()
}

// set parses values into a field; no value or an empty one leaves the zero value.
func set(f reflect.Value, values []string) error {
	if f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String {
		f.Set(reflect.ValueOf(values).Convert(f.Type()))
		return nil
	}
	s := ""
	if len(values) > 0 {
		s = values[0]
	}
	switch {
	case f.Type() == durationType:
		if s == "" {
			return nil
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 30s", s)
		}
		f.SetInt(int64(d))
	case f.Kind() == reflect.String:
		f.SetString(s)
	case f.Kind() == reflect.Bool:
		if s == "" {
			// A bare ?stale means yes; an absent one means no.
			f.SetBool(len(values) > 0 && f.Type().Name() == "Flag")
			return nil
		}
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		f.SetBool(b)
	case f.CanInt():
		if s == "" {
			return nil
		}
		n, err := strconv.ParseInt(s, 10, f.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number that fits", s)
		}
		f.SetInt(n)
	case f.CanUint():
		if s == "" {
			return nil
		}
		n, err := strconv.ParseUint(s, 10, f.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number of 0 or more that fits", s)
		}
		f.SetUint(n)
	default:
		return fmt.Errorf("type %s is not supported", f.Type())
	}
	return nil
}

// Flag is a boolean query parameter that may stand without a value.
type Flag bool
