package dto

import (
	"encoding/json"
	"errors"
)

// Device is what each runner of an environment is given of one kind of device.
type Device struct {
	Name        string             `json:"name"`
	Count       *uint              `json:"count,omitempty"` // null in a request = 1; answers have it
	Constraints []DeviceConstraint `json:"constraints,omitempty"`
	Share       Share              `json:"share,omitempty"`
}

// DeviceConstraint is a condition on the devices that are taken.
type DeviceConstraint struct {
	Attribute string `json:"attribute"`
	Operator  string `json:"operator,omitempty"` // "" in a request = "="
	Value     string `json:"value,omitempty"`
}

// Share says whether parts of a device will do: false, true or "only" in JSON. The zero Share is false.
type Share string

// The shares.
const (
	NoShare   Share = ""
	AnyShare  Share = "true"
	OnlyShare Share = "only"
)

// MarshalJSON is false, true or "only".
func (s Share) MarshalJSON() ([]byte, error) {
	if s == OnlyShare {
		return json.Marshal(string(s))
	}
	return json.Marshal(s == AnyShare)
}

// UnmarshalJSON reads false, true, "only" and null, which is false.
func (s *Share) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v {
	case nil, false:
		*s = NoShare
	case true:
		*s = AnyShare
	case "only":
		*s = OnlyShare
	default:
		return errors.New(`share is none of false, true and "only"`)
	}
	return nil
}
