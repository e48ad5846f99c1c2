package wire

import (
	"regexp"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// serviceName is a DNS label, for that is what services are looked up by.
var serviceName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// services checks the services of a group or a task.
func (p *Problems) services(where string, list []*api.Service) {
	names := map[string]bool{}
	for i, s := range list {
		if s == nil {
			p.err("%s: service %d is null", where, i+1)
			continue
		}
		switch s.Provider {
		case "nomad":
		case "consul", "":
			p.err("%s: service %s: provider consul is not supported by Rockpool, set provider = \"nomad\"", where, s.Name)
		default:
			p.err("%s: service %s: provider %q is not known, only nomad", where, s.Name, s.Provider)
		}
		// What stands in ${…} is filled in on the node.
		if !strings.Contains(s.Name, "${") && !serviceName.MatchString(s.Name) {
			p.err("%s: service name %q must be 1 to 63 letters, digits and hyphens, with no hyphen at either end", where, s.Name)
		}
		if key := s.Name + "\x00" + s.PortLabel; names[key] {
			p.err("%s: service %s is given twice for port %q", where, s.Name, s.PortLabel)
		} else {
			names[key] = true
		}
		if s.Connect != nil {
			p.err("%s: service %s: Connect is not supported by Rockpool", where, s.Name)
		}
		for _, c := range s.Checks {
			if c.Type != "tcp" && c.Type != "http" {
				p.err("%s: service %s: a check of type %q is not supported by Rockpool, only tcp and http", where, s.Name, c.Type)
			}
			if c.Interval <= 0 || c.Timeout <= 0 {
				p.err("%s: service %s: a check needs an interval and a timeout", where, s.Name)
			}
		}
	}
}
