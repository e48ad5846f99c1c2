package api

import (
	"rockpool/internal/api/dto"
	"rockpool/internal/environment"
)

// shares are the values of share on the wire.
var shares = map[environment.Share]dto.Share{environment.Whole: dto.NoShare, environment.Either: dto.AnyShare, environment.OnlyPart: dto.OnlyShare}

func devicesOut(list []environment.Device) []dto.Device {
	var out []dto.Device
	for _, d := range list {
		o := dto.Device{Name: d.Name, Count: new(d.Count), Share: shares[d.Share]}
		for _, c := range d.Constraints {
			o.Constraints = append(o.Constraints, dto.DeviceConstraint{Attribute: c.Attribute, Operator: c.Operator, Value: c.Value})
		}
		out = append(out, o)
	}
	return out
}

func devicesIn(list []dto.Device) []environment.Device {
	var in []environment.Device
	for _, d := range list {
		x := environment.Device{Name: d.Name, Count: 1}
		if d.Count != nil {
			x.Count = *d.Count
		}
		for share, word := range shares {
			if word == d.Share {
				x.Share = share
			}
		}
		for _, c := range d.Constraints {
			x.Constraints = append(x.Constraints, environment.DeviceConstraint{Attribute: c.Attribute, Operator: c.Operator, Value: c.Value}.Canonical())
		}
		in = append(in, x)
	}
	return in
}
