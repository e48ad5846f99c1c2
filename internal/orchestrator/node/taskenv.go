package node

import (
	"maps"
	"net"
	"regexp"
	"strconv"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// taskEnv is the environment of a task's main process: what describes the placement, and the task's own variables with their
// references filled in.
func taskEnv(n *model.Node, a *model.Allocation, g *model.TaskGroup, t *model.Task) map[string]string {
	env := placementEnv(n, a, g, t)
	own := make(map[string]string, len(t.Env))
	for k, v := range t.Env {
		own[k] = expand(v, n, env)
	}
	maps.Copy(env, own)
	return env
}

func placementEnv(n *model.Node, a *model.Allocation, g *model.TaskGroup, t *model.Task) map[string]string {
	env := map[string]string{
		"NOMAD_ALLOC_ID":       a.ID,
		"NOMAD_SHORT_ALLOC_ID": a.ID[:min(8, len(a.ID))],
		"NOMAD_ALLOC_NAME":     a.Name,
		"NOMAD_ALLOC_INDEX":    allocIndex(a.Name),
		"NOMAD_TASK_NAME":      t.Name,
		"NOMAD_GROUP_NAME":     g.Name,
		"NOMAD_JOB_ID":         a.JobID,
		"NOMAD_JOB_NAME":       a.Job.Name,
		"NOMAD_NAMESPACE":      a.Namespace,
		"NOMAD_REGION":         a.Job.Region,
		"NOMAD_DC":             n.Datacenter,
		"NOMAD_CPU_LIMIT":      strconv.Itoa(t.Resources.CPU),
		"NOMAD_MEMORY_LIMIT":   strconv.Itoa(t.Resources.MemoryMB),
	}
	if a.Job.ParentID != "" {
		env["NOMAD_JOB_PARENT_ID"] = a.Job.ParentID
	}
	if r := a.Resources.Tasks[t.Name]; r != nil && r.MemoryMB > 0 {
		env["NOMAD_CPU_LIMIT"], env["NOMAD_MEMORY_LIMIT"] = strconv.Itoa(r.CPU), strconv.Itoa(r.MemoryMB)
	}
	if hard := t.Resources.MemoryMaxMB; hard > 0 {
		env["NOMAD_MEMORY_MAX_LIMIT"] = strconv.Itoa(hard)
	}
	for _, meta := range []map[string]string{a.Job.Meta, g.Meta, t.Meta} { // the most specific wins
		for k, v := range meta {
			k = envKey(k)
			env["NOMAD_META_"+k], env["NOMAD_META_"+strings.ToUpper(k)] = v, v
		}
	}
	for _, p := range a.Resources.Ports {
		label, inside := envKey(p.Label), p.To
		if inside <= 0 {
			inside = p.Value
		}
		env["NOMAD_PORT_"+label] = strconv.Itoa(inside)
		env["NOMAD_HOST_PORT_"+label] = strconv.Itoa(p.Value)
		env["NOMAD_IP_"+label] = p.HostIP
		env["NOMAD_ADDR_"+label] = net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value)) // with the brackets that an IPv6 address needs before a port
	}
	return env
}

// allocIndex is the number in "job.group[3]".
func allocIndex(name string) string {
	i, j := strings.LastIndexByte(name, '['), strings.LastIndexByte(name, ']')
	if i < 0 || j < i {
		return "0"
	}
	return name[i+1 : j]
}

var notInEnvKey = regexp.MustCompile(`[^a-zA-Z0-9_]`)

func envKey(s string) string { return notInEnvKey.ReplaceAllString(s, "_") }

var reference = regexp.MustCompile(`\$\{([^${}]+)\}`)

// expand fills in ${NOMAD_…}, ${env["X"]}, ${attr.x}, ${meta.x} and ${node.x}. What is not known stays as it is written.
func expand(s string, n *model.Node, env map[string]string) string {
	if !strings.Contains(s, "${") {
		return s
	}
	return reference.ReplaceAllStringFunc(s, func(ref string) string {
		if v, ok := lookup(strings.TrimSpace(ref[2:len(ref)-1]), n, env); ok {
			return v
		}
		return ref
	})
}

func lookup(name string, n *model.Node, env map[string]string) (v string, ok bool) {
	if v, ok = env[name]; ok {
		return v, ok
	}
	if k, found := strings.CutPrefix(name, `env["`); found {
		v, ok = env[strings.TrimSuffix(k, `"]`)]
		return v, ok
	}
	if k, found := strings.CutPrefix(name, "attr."); found {
		v, ok = n.Attributes[k]
		return v, ok
	}
	if k, found := strings.CutPrefix(name, "meta."); found {
		v, ok = n.Meta[k]
		return v, ok
	}
	v, ok = map[string]string{"node.unique.id": n.ID, "node.unique.name": n.Name, "node.datacenter": n.Datacenter,
		"node.class": n.NodeClass, "node.pool": n.NodePool}[name]
	return v, ok
}

// expandConfig fills in the strings of a driver configuration, in a copy.
func expandConfig(v any, n *model.Node, env map[string]string) any {
	switch v := v.(type) {
	case string:
		return expand(v, n, env)
	case []any:
		c := make([]any, len(v))
		for i := range v {
			c[i] = expandConfig(v[i], n, env)
		}
		return c
	case []string:
		c := make([]string, len(v))
		for i := range v {
			c[i] = expand(v[i], n, env)
		}
		return c
	case map[string]any:
		c := make(map[string]any, len(v))
		for k := range v {
			c[k] = expandConfig(v[k], n, env)
		}
		return c
	}
	return v
}
