package environment

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"rockpool/internal/fault"
)

// Device is what each runner of an environment is given of one kind of device.
type Device struct {
	Name        string // type, vendor/type or vendor/type/model, such as nvidia/gpu
	Count       uint   // instances, all of one model and on one node; from 1
	Constraints []DeviceConstraint
	Share       Share
}

// DeviceConstraint is a condition on the devices that are taken.
type DeviceConstraint struct {
	Attribute string // one that the node tells, such as memory, or ${device.vendor}, ${device.type}, ${device.model}, ${device.ids}
	Operator  string // one of Nomad's; the canonical one of several with the same meaning
	Value     string // with a unit where the attribute has one; "" for is_set and is_not_set
}

// Share says whether instances that are parts of a device will do: MIG instances, and slots of a device that several programs take turns on.
type Share uint8

// The shares.
const (
	Whole    Share = iota // only whole devices
	Either                // whole devices and parts
	OnlyPart              // only parts
)

// ShareAttribute is the attribute that parts of a device have, and whole ones have not.
const ShareAttribute = "share"

// Bounds of what an environment may ask for.
const (
	maxDevices     = 8
	maxCount       = 128
	maxConstraints = 16
	maxText        = 256 // bytes of a name, an attribute, a value
)

// operators are the canonical names of those that Nomad has for devices.
var operators = map[string]string{
	"": "=", "=": "=", "==": "=", "is": "=", "!=": "!=", "not": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "version": "version", "semver": "semver",
	"regexp": "regexp", "set_contains": "set_contains", "set_contains_all": "set_contains", "set_contains_any": "set_contains_any", "is_set": "is_set", "is_not_set": "is_not_set",
}

var (
	attributeName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	wholeTarget   = regexp.MustCompile(`^\$\{device\.attr\.([A-Za-z0-9_.-]+)\}$`)
)

// targets are what a constraint may look at besides attributes.
var targets = []string{"${device.vendor}", "${device.type}", "${device.model}", "${device.ids}"}

// Canonical is the constraint in the one form that is compared and stored. What it does not know it leaves alone: [Environment.Validate] refuses it.
func (c DeviceConstraint) Canonical() DeviceConstraint {
	if m := wholeTarget.FindStringSubmatch(c.Attribute); m != nil {
		c.Attribute = m[1]
	}
	if o, ok := operators[c.Operator]; ok {
		c.Operator = o
	}
	return c
}

// Target is what the cluster is told to look at.
func (c DeviceConstraint) Target() string {
	if strings.HasPrefix(c.Attribute, "${") {
		return c.Attribute
	}
	return "${device.attr." + c.Attribute + "}"
}

// Names reports whether a request for a device of that name means the device of a vendor, type and model.
func (d Device) Names(vendor, kind, model string) bool {
	switch parts := strings.SplitN(d.Name, "/", 3); len(parts) {
	case 1:
		return parts[0] == kind
	case 2:
		return parts[0] == vendor && parts[1] == kind
	default:
		return parts[0] == vendor && parts[1] == kind && parts[2] == model
	}
}

// String is the device as settings are compared by. Different devices have different strings.
func (d Device) String() string {
	return fmt.Sprintf("%q*%d%q!%d", d.Name, d.Count, d.Constraints, d.Share)
}

// Covers reports whether every device that another request may be given is one that d names.
func (d Device) Covers(o Device) bool {
	parts := append(strings.SplitN(o.Name, "/", 3), "", "")
	if !strings.Contains(o.Name, "/") {
		return d.Names("", parts[0], "")
	}
	return d.Names(parts[0], parts[1], parts[2])
}

func (d Device) validate() error {
	if err := plain("name", d.Name); err != nil {
		return err
	}
	if slices.Contains(strings.SplitN(d.Name, "/", 3), "") {
		return fmt.Errorf("name %q is none of type, vendor/type and vendor/type/model, such as nvidia/gpu", d.Name)
	}
	if d.Count < 1 || d.Count > maxCount {
		return fmt.Errorf("count %d is not between 1 and %d", d.Count, maxCount)
	}
	if len(d.Constraints) > maxConstraints {
		return fmt.Errorf("there are %d constraints, more than %d", len(d.Constraints), maxConstraints)
	}
	for _, c := range d.Constraints {
		if err := c.validate(); err != nil {
			return fmt.Errorf("the constraint on %q: %w", c.Attribute, err)
		}
	}
	return nil
}

func (c DeviceConstraint) validate() error {
	if err := plain("attribute", c.Attribute); err != nil {
		return err
	}
	if !attributeName.MatchString(c.Attribute) && !slices.Contains(targets, c.Attribute) {
		return fmt.Errorf("attribute is neither the name of one, such as memory, nor one of %s", strings.Join(targets, ", "))
	}
	if operators[c.Operator] != c.Operator {
		return fmt.Errorf("there is no operator %q, only =, !=, <, <=, >, >=, version, semver, regexp, set_contains, set_contains_any, is_set, is_not_set", c.Operator)
	}
	presence := c.Operator == "is_set" || c.Operator == "is_not_set"
	switch {
	case presence && c.Value != "":
		return fmt.Errorf("operator %s takes no value", c.Operator)
	case presence && c.Attribute == ShareAttribute:
		return fmt.Errorf("whether parts of a device will do is said by share: false, true or \"only\"")
	case presence:
		return nil
	}
	if err := plain("value", c.Value); err != nil {
		return err
	}
	if c.Operator == "regexp" {
		if _, err := regexp.Compile(c.Value); err != nil {
			return fmt.Errorf("value %q is no regular expression: %w", c.Value, err)
		}
	}
	return nil
}

// plain refuses a text that is empty, too long, or not one to print.
func plain(what, text string) error {
	switch {
	case text == "":
		return fmt.Errorf("%s is missing", what)
	case len(text) > maxText:
		return fmt.Errorf("%s is longer than %d bytes", what, maxText)
	case strings.TrimSpace(text) != text || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s %q has spaces around it, or characters that cannot be printed", what, text)
	}
	return nil
}

func validateDevices(list []Device) error {
	if len(list) > maxDevices {
		return fault.New(fault.Invalid, "devices: there are %d, more than %d", len(list), maxDevices)
	}
	for i, d := range list {
		if err := d.validate(); err != nil {
			return fault.Wrap(fault.Invalid, err, "devices[%d]: %v", i, err)
		}
	}
	return nil
}
