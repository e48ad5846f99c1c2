package device

import (
	"context"
	"time"

	"rockpool/internal/orchestrator/model"
)

// Plugin knows the devices of one kind.
type Plugin interface {
	// Name is lower case and the same for the life of the node, such as "nvidia".
	Name() string
	// Watch publishes a first report as soon as it knows anything, also that there is nothing, and another one at each change, until ctx ends. Reports are whole and
	// never changed afterwards. Calls of publish do not overlap. A plugin watches once, and again only after a panic. What goes wrong is in the reports and tried again; the error is that of ctx.
	Watch(ctx context.Context, publish func(Report)) error
	// Reserve says what a task has to have in its environment to use these instances. It reserves nothing by itself, and waits for no hardware. An instance that the
	// newest report does not have is an error of kind fault.NotFound, one that is unhealthy of kind fault.Unavailable with the reason.
	Reserve(ids []string) (map[string]string, error)
	// Residue says what is left on an instance whose task has ended, as the end of a sentence: processes, or memory that nobody holds; "" = it was looked at, and nothing
	// is left. What cannot be found out is an error. Of an instance that shares a GPU only what belongs to no other one counts.
	Residue(ctx context.Context, id string) (string, error)
	// Stats are figures of the instances that answer, in the order of their ids.
	Stats(ctx context.Context) ([]Sample, error)
}

// Report is what a plugin has found.
type Report struct {
	Detected    bool   // there is something to work with
	Healthy     bool   // and it answers
	Description string // one sentence: what was found, or why nothing can be
	// Groups are of equal instances, sorted by name, their instances by id. An instance that is unhealthy stays in its group, with the reason.
	Groups []model.NodeDevice
}

// Instance finds an instance by its id.
func (r *Report) Instance(id string) (*model.NodeDevice, *model.DeviceInstance) {
	for i := range r.Groups {
		for j := range r.Groups[i].Instances {
			if r.Groups[i].Instances[j].ID == id {
				return &r.Groups[i], &r.Groups[i].Instances[j]
			}
		}
	}
	return nil, nil
}

// Sample is what one instance did at a moment.
type Sample struct {
	Vendor, Type, Name, ID string
	At                     time.Time
	Values                 []Value // sorted by their measure
}

// Value is one figure.
type Value struct {
	Measure Measure
	N       float64
	Of      float64 // what N is a part of; 0 = of nothing that is known
}

// Measure says what a figure is.
type Measure uint8

// Measures.
const (
	Memory Measure = iota
	Utilization
	MemoryUtilization
	EncoderUtilization
	DecoderUtilization
	Temperature
	Power
	BAR1
	CoresClock
	MemoryClock
	ECCErrors
	measures
)

// measured is what is known of each measure.
var measured = [measures]struct{ name, figure, unit, description string }{
	Memory:             {"Memory state", "memory_mib", "MiB", "UsedMemory / TotalMemory"},
	Utilization:        {"GPU utilization", "utilization_percent", "%", "Percent of time over the past sample period during which one or more kernels were executing"},
	MemoryUtilization:  {"Memory utilization", "memory_utilization_percent", "%", "Percent of time over the past sample period during which memory was read or written"},
	EncoderUtilization: {"Encoder utilization", "encoder_utilization_percent", "%", "Percent of time over the past sample period during which the encoder was used"},
	DecoderUtilization: {"Decoder utilization", "decoder_utilization_percent", "%", "Percent of time over the past sample period during which the decoder was used"},
	Temperature:        {"Temperature", "temperature_celsius", "C", "Temperature of the unit"},
	Power:              {"Power usage", "power_watts", "W", "Power usage and the limit that is enforced"},
	BAR1:               {"BAR1 buffer state", "bar1_mib", "MiB", "UsedBAR1 / TotalBAR1"},
	CoresClock:         {"Cores clock", "cores_clock_mhz", "MHz", "Clock of the cores and its maximum"},
	MemoryClock:        {"Memory clock", "memory_clock_mhz", "MHz", "Clock of the memory and its maximum"},
	ECCErrors:          {"ECC uncorrected errors", "ecc_uncorrected_errors", "", "Errors of memory that could not be corrected, since the driver was loaded"},
}

// Name is that of the API, which Nomad's own plugin gave it.
func (m Measure) Name() string { return measured[m].name }

// Figure is the last part of the name that metrics have, with the unit.
func (m Measure) Figure() string { return measured[m].figure }

// Unit is that of both numbers; "" = they are counts.
func (m Measure) Unit() string { return measured[m].unit }

// Description is a sentence for people.
func (m Measure) Description() string { return measured[m].description }
