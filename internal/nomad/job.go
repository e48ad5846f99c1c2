package nomad

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/runner"
)

// Names that are part of the contract: a cluster run by Poseidon can be taken over, and given back.
const (
	mainGroup   = "default-group"
	mainTask    = "default-task"
	configGroup = "config"

	metaUsed     = "used"
	metaTimeout  = "timeout"
	metaGateway  = "rockpool_gateway" // which gateway claimed it, where there are several
	metaOwner    = "owner"            // ours: whose token claimed it; left out for the one token of the configuration
	metaPoolSize = "prewarmingPoolSize"
	metaPoolMin  = "rockpool_pool_min"      // bounds of a size that follows the claims
	metaPoolMax  = "rockpool_pool_max"      // missing = the size is fixed
	metaKey      = "rockpool_claim_key"     // of a claim that may be repeated
	metaRequest  = "rockpool_claim_request" // what it asked for
	metaAt       = "rockpool_claim_at"      // when, in seconds since 1970
	metaEgress   = "rockpool_egress"        // of the main group; see docs/native-api.md
	metaRevived  = "rockpool_revived"       // when a template was registered anew because its container had ended
	metaImage    = "image"                  // as the client gave it, when runners are told something more exact
	metaDigest   = "imageDigest"            // of that image

	templatePrefix = "template-"
)

// defaultTimeout is what a used runner gets whose stored timeout is missing or unreadable.
const defaultTimeout = 60 * time.Second

func templateID(id environment.ID) string { return templatePrefix + strconv.Itoa(int(id)) }

var templateName = regexp.MustCompile(`^template-([0-9]+)$`)

func templateEnvironment(jobID string) (environment.ID, bool) {
	m := templateName.FindStringSubmatch(jobID)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return environment.ID(n), err == nil
}

// runnerEnvironment is the environment that a runner's id names.
func runnerEnvironment(jobID string) (environment.ID, bool) {
	env, rest, ok := strings.Cut(jobID, "-")
	if !ok || !ident.Valid(rest) {
		return 0, false
	}
	n, err := strconv.Atoi(env)
	return environment.ID(n), err == nil && n >= 0 && strconv.Itoa(n) == env
}

func decodeTemplate(data []byte) (*api.Job, error) {
	var job api.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return nil, fmt.Errorf("the parsed template job: %w", err)
	}
	group, task := mainOf(&job)
	if group == nil || task == nil || configOf(&job) == nil || len(configOf(&job).Tasks) == 0 {
		return nil, fmt.Errorf("the template job needs a group %q with a task %q, and a group %q with a task", mainGroup, mainTask, configGroup)
	}
	if task.Resources != nil && len(task.Resources.Devices) > 0 {
		return nil, fmt.Errorf("the template job's task %q must not ask for devices: environments do, by their field devices", mainTask)
	}
	return &job, nil
}

func mainOf(job *api.Job) (*api.TaskGroup, *api.Task) {
	for _, g := range job.TaskGroups {
		if g.Name != nil && *g.Name == mainGroup {
			for _, t := range g.Tasks {
				if t.Name == mainTask {
					return g, t
				}
			}
			return g, nil
		}
	}
	return nil, nil
}

func configOf(job *api.Job) *api.TaskGroup {
	for _, g := range job.TaskGroups {
		if g.Name != nil && *g.Name == configGroup {
			return g
		}
	}
	return nil
}

// isOurs reports whether a job is certainly an idle runner of an environment: by its name, its groups and task, and the mark that says that nobody uses it.
func isOurs(job *api.Job, id environment.ID) bool {
	env, ok := runnerEnvironment(*job.ID)
	_, task := mainOf(job)
	config := configOf(job)
	return ok && env == id && task != nil && config != nil && config.Count != nil && *config.Count == 0 && config.Meta[metaUsed] == "false" &&
		(job.Type == nil || *job.Type == "batch")
}

// derive makes a job from the template and an environment's settings.
func (c *Client) derive(e environment.Environment, id string, pull bool) (*api.Job, error) {
	data := c.template.Load()
	if data == nil {
		return nil, fmt.Errorf("the template job has not been parsed yet")
	}
	job, err := decodeTemplate(*data)
	if err != nil {
		return nil, err
	}
	group, task := mainOf(job)
	job.ID, job.Name = &id, &id
	job.Namespace = nil // the query says it
	if task.Config == nil {
		task.Config = map[string]any{}
	}
	task.Config["image"] = e.Image
	task.Config["force_pull"] = pull && c.opts.ForcePull && e.Pin.Digest == ""
	if e.Pin.Digest != "" {
		task.Config["image"] = e.Pin.Reference
	}
	if task.Resources == nil {
		task.Resources = &api.Resources{}
	}
	task.Resources.CPU = new(int(e.CPULimit))
	task.Resources.MemoryMaxMB = new(int(e.MemoryLimit))
	if err := c.warm(task, e.WarmUp); err != nil {
		return nil, err
	}
	if e.Runtime != "" {
		task.Config["runtime"] = e.Runtime
		if !c.Native() && task.Driver == "docker" { // our own nodes see to it themselves
			task.Constraints = append(task.Constraints, &api.Constraint{LTarget: "${attr.driver.docker.runtimes}", Operand: "set_contains", RTarget: e.Runtime})
		}
	}
	if len(e.Devices) > 0 {
		askFor(e.Devices, holderOf(job, id))
	}
	if len(e.Egress) > 0 {
		if !c.Native() { // a rule that nobody enforces is worse than none
			return nil, fault.New(fault.Invalid, "this cluster cannot limit what runners reach: leave networkEgress out, or use Rockpool's own orchestrator")
		}
		if group.Meta == nil {
			group.Meta = map[string]string{}
		}
		group.Meta[metaEgress] = strings.Join(e.Egress, ",")
	}
	group.Networks = nil
	if e.NetworkAccess {
		task.Config["network_mode"] = ""
		group.Networks = []*api.NetworkResource{c.network(e)}
	} else {
		task.Config["network_mode"] = "none"
	}
	return job, nil
}

// describe is the meta data of a job: whether it is used, and what its image was called.
func describe(e environment.Environment) map[string]string {
	meta := map[string]string{metaUsed: "false"}
	if e.Pin.Digest != "" {
		meta[metaImage], meta[metaDigest] = e.Image, e.Pin.Digest
	}
	return meta
}

func (c *Client) network(e environment.Environment) *api.NetworkResource {
	n := c.opts.Network
	r := &api.NetworkResource{Mode: n.Mode, Hostname: n.Hostname}
	if len(n.Servers)+len(n.Searches)+len(n.Options) > 0 {
		r.DNS = &api.DNSConfig{Servers: n.Servers, Searches: n.Searches, Options: n.Options}
	}
	for _, p := range e.ExposedPorts {
		r.DynamicPorts = append(r.DynamicPorts, api.Port{Label: strconv.Itoa(int(p)), To: int(p)})
	}
	return r
}

// settingsOf reads the environment back that a job was derived from.
func settingsOf(job *api.Job, id environment.ID) environment.Environment {
	e := environment.Environment{ID: id}
	group, task := mainOf(job)
	if task == nil {
		return e
	}
	e.Image, _ = task.Config["image"].(string)
	e.WarmUp = warmUpOf(task)
	e.Runtime, _ = task.Config["runtime"].(string)
	if rules := group.Meta[metaEgress]; rules != "" {
		e.Egress = strings.Split(rules, ",")
	}
	if r := task.Resources; r != nil {
		if r.CPU != nil {
			e.CPULimit = uint(max(*r.CPU, 0))
		}
		if r.MemoryMaxMB != nil {
			e.MemoryLimit = uint(max(*r.MemoryMaxMB, 0))
		}
	}
	e.Devices = devicesOf(job)
	e.NetworkAccess = len(group.Networks) > 0
	for _, n := range group.Networks {
		for _, p := range n.DynamicPorts {
			e.ExposedPorts = append(e.ExposedPorts, uint16(p.To))
		}
	}
	if g := configOf(job); g != nil {
		n, _ := strconv.ParseUint(g.Meta[metaPoolSize], 10, 31)
		e.PoolSize = uint(n)
		e.PoolSizeMin, e.PoolSizeMax = poolBounds(g.Meta, e.PoolSize)
		if d := g.Meta[metaDigest]; d != "" {
			e.Pin = environment.Pin{Digest: d, Reference: e.Image}
			e.Image = g.Meta[metaImage]
		}
	}
	return e
}

// poolBounds reads the bounds of a size that follows the claims. What is unreadable or makes no sense is a fixed size.
func poolBounds(meta map[string]string, size uint) (least, most uint) {
	low, _ := strconv.ParseUint(meta[metaPoolMin], 10, 31)
	high, err := strconv.ParseUint(meta[metaPoolMax], 10, 31)
	if err != nil || uint(low) > size || uint(high) < size {
		return 0, 0
	}
	return uint(low), uint(high)
}

// gatewayOf is the gateway that claimed a runner; "" = none that says so.
func gatewayOf(job *api.Job) string {
	if g := configOf(job); g != nil {
		return g.Meta[metaGateway]
	}
	return ""
}

// claimOf reads whether a runner is used, and how it was claimed.
func claimOf(job *api.Job) (used bool, m runner.Mark) {
	g := configOf(job)
	if g == nil || g.Meta[metaUsed] != "true" {
		return false, m
	}
	m.Timeout, m.Owner = defaultTimeout, g.Meta[metaOwner]
	if n, err := strconv.ParseInt(g.Meta[metaTimeout], 10, 32); err == nil && n >= 0 {
		m.Timeout = time.Duration(n) * time.Second
	}
	if at, err := strconv.ParseInt(g.Meta[metaAt], 10, 64); err == nil && g.Meta[metaKey] != "" {
		m.Key, m.Request, m.At = g.Meta[metaKey], g.Meta[metaRequest], time.Unix(at, 0)
	}
	return true, m
}

// markAs writes a claim into a job's meta data.
func markAs(meta map[string]string, m runner.Mark) {
	meta[metaUsed] = "true"
	meta[metaTimeout] = strconv.Itoa(int(m.Timeout / time.Second))
	if m.Owner != "" {
		meta[metaOwner] = m.Owner
	}
	if m.Key != "" {
		meta[metaKey], meta[metaRequest], meta[metaAt] = m.Key, m.Request, strconv.FormatInt(m.At.Unix(), 10)
	}
}
