package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"rockpool/internal/api/dto"
	"rockpool/internal/environment"
)

// readDevices reads the field devices of a definition strictly, and brings it into the form in which the gateway answers it, so that the two can be compared.
func readDevices(v any) (any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	var list []dto.Device
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, fmt.Errorf("devices: a list is wanted, each with name, count, constraints (attribute, operator, value) and share: %w", err)
	}
	for i := range list {
		if list[i].Count == nil {
			list[i].Count = new(uint(1))
		}
		for k, c := range list[i].Constraints {
			known := environment.DeviceConstraint{Attribute: c.Attribute, Operator: c.Operator, Value: c.Value}.Canonical()
			list[i].Constraints[k] = dto.DeviceConstraint{Attribute: known.Attribute, Operator: known.Operator, Value: known.Value}
		}
	}
	return generic(list)
}

// generic is a value as JSON is read without its type.
func generic(v any) (out any, err error) {
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}

// NoDevices is what a flag says instead of a device so that there are none.
const NoDevices = "none"

// ParseDevices reads devices as flags say them: name, or name=count.
func ParseDevices(words []string) (any, error) {
	list := []dto.Device{}
	for _, word := range words {
		name, count, counted := strings.Cut(word, "=")
		switch {
		case word == NoDevices && len(words) == 1:
			continue
		case name == "" || word == NoDevices:
			return nil, fmt.Errorf("%q is neither a device, such as nvidia/gpu or nvidia/gpu=2, nor alone %q", word, NoDevices)
		}
		n := uint64(1)
		if counted {
			var err error
			if n, err = strconv.ParseUint(count, 10, 16); err != nil || n == 0 {
				return nil, fmt.Errorf("%q: %q is no number of devices from 1", word, count)
			}
		}
		list = append(list, dto.Device{Name: name, Count: new(uint(n))})
	}
	return generic(list)
}
