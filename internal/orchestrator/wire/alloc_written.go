package wire

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/model"
)

type writer = jsonform.Writer

// WriteAllocWithoutJob writes the JSON of what AllocWithoutJob makes, without making it.
func WriteAllocWithoutJob(w *writer, a *model.Allocation) {
	o := fields{w, '{'}
	o.text("ID", a.ID)
	o.text("Namespace", a.Namespace)
	o.text("EvalID", a.EvalID)
	o.text("Name", a.Name)
	o.text("NodeID", a.NodeID)
	o.text("NodeName", a.NodeName)
	o.text("JobID", a.JobID)
	o.text("TaskGroup", a.TaskGroup)
	o.key("AllocatedResources")
	writeResources(w, a)
	if a.Metrics != nil {
		o.key("Metrics")
		writeMetrics(w, a)
	}
	o.text("DesiredStatus", a.DesiredStatus)
	o.text("DesiredDescription", a.DesiredDescription)
	if t := transitionOut(a.Transition); t != (api.DesiredTransition{}) {
		o.value("DesiredTransition", t)
	}
	o.text("ClientStatus", a.ClientStatus)
	o.text("ClientDescription", a.ClientDescription)
	if known := knownStates(a.TaskStates); len(known) > 0 {
		o.key("TaskStates")
		jsonform.Map(w, known, writeState)
	}
	o.text("DeploymentID", a.DeploymentID)
	if h := healthOut(a.DeploymentStatus); h != nil {
		o.value("DeploymentStatus", h)
	}
	o.text("FollowupEvalID", a.FollowupEvalID)
	o.text("PreviousAllocation", a.PreviousAllocation)
	o.text("NextAllocation", a.NextAllocation)
	if r := reschedulesOut(a.Reschedules); r != nil {
		o.value("RescheduleTracker", r)
	}
	if n := networkStatusOut(a.NetworkStatus); n != nil {
		o.value("NetworkStatus", n)
	}
	if len(a.Preempts) > 0 {
		o.value("PreemptedAllocations", a.Preempts)
	}
	o.text("PreemptedByAllocation", a.PreemptedBy)
	o.uint("CreateIndex", a.CreateIndex)
	o.uint("ModifyIndex", a.ModifyIndex)
	o.uint("AllocModifyIndex", a.AllocModifyIndex)
	o.int("CreateTime", a.CreateTime)
	o.int("ModifyTime", a.ModifyTime)
	w.WriteByte('}')
}

// fields writes those fields of an object that are not empty. There must be one.
type fields struct {
	w      *writer
	before byte // what stands before the next one
}

func (o *fields) key(name string) {
	o.w.WriteByte(o.before)
	o.before = ','
	o.w.WriteByte('"')
	o.w.WriteString(name)
	o.w.WriteString(`":`)
}

func (o *fields) text(name, s string) {
	if s != "" {
		o.key(name)
		o.w.Text(s)
	}
}

func (o *fields) uint(name string, n uint64) {
	if n != 0 {
		o.key(name)
		o.w.Uint(n)
	}
}

func (o *fields) int(name string, n int64) {
	if n != 0 {
		o.key(name)
		o.w.Int(n)
	}
}

// value writes what seldom is there.
func (o *fields) value(name string, v any) {
	o.key(name)
	o.w.Value(v)
}

// seldom writes a list that few allocations have.
func seldom[T any](w *writer, list []T) {
	if list == nil {
		w.WriteString("null")
		return
	}
	w.Value(list)
}

// Values of samples that nothing else in them has.
const mark = jsonform.Mark

func markedTime(n int64) time.Time              { return time.Unix(mark+n, 0).UTC() }
func markedCounts(n int) map[string]int         { return map[string]int{"": n} }
func markedScores(s float64) map[string]float64 { return map[string]float64{"": s} }

var writeResources = jsonform.Of(api.AllocatedResources{
	Tasks:  map[string]*api.AllocatedTaskResources{},
	Shared: api.AllocatedSharedResources{DiskMB: mark, Networks: []*api.NetworkResource{}, Ports: []api.PortMapping{}},
},
	jsonform.At(struct{}{}, func(w *writer, a *model.Allocation) {
		if a.Resources.Tasks == nil {
			w.WriteString("{}")
			return
		}
		jsonform.Map(w, a.Resources.Tasks, writeTaskResources)
	}),
	jsonform.At(mark, func(w *writer, a *model.Allocation) { w.Int(int64(a.Resources.DiskMB)) }),
	jsonform.At([]int{}, func(w *writer, a *model.Allocation) { seldom(w, networksOut(a)) }),
	jsonform.At([]int{}, func(w *writer, a *model.Allocation) { seldom(w, portsOut(a.Resources.Ports)) }),
)

var writeTaskResources = jsonform.Of(api.AllocatedTaskResources{
	Cpu: api.AllocatedCpuResources{CpuShares: mark}, Memory: api.AllocatedMemoryResources{MemoryMB: mark + 1, MemoryMaxMB: mark + 2},
	Devices: []*api.AllocatedDeviceResource{},
},
	jsonform.At(mark, func(w *writer, t *model.AllocatedTask) { w.Int(int64(t.CPU)) }),
	jsonform.At(mark+1, func(w *writer, t *model.AllocatedTask) { w.Int(int64(t.MemoryMB)) }),
	jsonform.At(mark+2, func(w *writer, t *model.AllocatedTask) { w.Int(int64(t.MemoryMaxMB)) }),
	jsonform.At([]int{}, func(w *writer, t *model.AllocatedTask) { seldom(w, devicesOut(t.Devices)) }),
)

func writeMetrics(w *writer, a *model.Allocation) {
	if len(a.Metrics.Scores) > 0 { // of a state that an earlier version wrote
		w.Value(metricsOf(a))
		return
	}
	writeMetric(w, a)
}

var writeMetric = jsonform.Of(api.AllocationMetric{
	NodesEvaluated: mark, NodesFiltered: mark + 1, NodesInPool: mark + 2, NodePool: "pool", NodesAvailable: markedCounts(1), ClassFiltered: markedCounts(2),
	ConstraintFiltered: markedCounts(3), NodesExhausted: mark + 3, DimensionExhausted: markedCounts(4), QuotaExhausted: []string{},
	AllocationTime: mark + 4, CoalescedFailures: mark + 5, ScoreMetaData: []*api.NodeScoreMeta{},
},
	jsonform.At(mark, func(w *writer, a *model.Allocation) { w.Int(int64(a.Metrics.NodesEvaluated)) }),
	jsonform.At(mark+1, func(w *writer, a *model.Allocation) { w.Int(int64(a.Metrics.NodesFiltered)) }),
	jsonform.At(mark+2, func(w *writer, a *model.Allocation) { w.Int(int64(a.Metrics.NodesInPool)) }),
	jsonform.At("pool", func(w *writer, a *model.Allocation) { w.Text(poolOf(a)) }),
	jsonform.At(markedCounts(1), func(w *writer, a *model.Allocation) { writeCounts(w, a.Metrics.NodesAvailable) }),
	jsonform.At(markedCounts(2), func(w *writer, a *model.Allocation) { writeCounts(w, a.Metrics.ClassFiltered) }),
	jsonform.At(markedCounts(3), func(w *writer, a *model.Allocation) { writeCounts(w, a.Metrics.ConstraintFiltered) }),
	jsonform.At(mark+3, func(w *writer, a *model.Allocation) { w.Int(int64(a.Metrics.NodesExhausted)) }),
	jsonform.At(markedCounts(4), func(w *writer, a *model.Allocation) { writeCounts(w, a.Metrics.DimensionExhausted) }),
	jsonform.At([]int{}, func(w *writer, a *model.Allocation) { jsonform.List(w, a.Metrics.QuotaExhausted, (*writer).Text) }),
	jsonform.At(mark+4, func(w *writer, a *model.Allocation) { w.Int(a.Metrics.AllocationTimeNS) }),
	jsonform.At(mark+5, func(w *writer, a *model.Allocation) { w.Int(int64(a.Metrics.CoalescedFailures)) }),
	jsonform.At([]int{}, func(w *writer, a *model.Allocation) {
		if len(a.Metrics.ScoreMeta) == 0 {
			w.WriteString("null")
			return
		}
		jsonform.List(w, a.Metrics.ScoreMeta, writeScore)
	}),
)

func writeCounts(w *writer, m map[string]int) {
	jsonform.Map(w, m, func(w *writer, n int) { w.Int(int64(n)) })
}

var writeScore = jsonform.Of(api.NodeScoreMeta{NodeID: "node", Scores: markedScores(1), NormScore: 0.5},
	jsonform.At("node", func(w *writer, s model.NodeScore) { w.Text(s.NodeID) }),
	jsonform.At(markedScores(1), func(w *writer, s model.NodeScore) { jsonform.Map(w, s.Scores, (*writer).Float) }),
	jsonform.At(0.5, func(w *writer, s model.NodeScore) { w.Float(s.Norm) }),
)

var writeState = jsonform.Of(api.TaskState{
	State: "state", Failed: true, Restarts: mark, LastRestart: markedTime(1), StartedAt: markedTime(2), FinishedAt: markedTime(3), Events: []*api.TaskEvent{},
},
	jsonform.At("state", func(w *writer, s *model.TaskState) { w.Text(s.State) }),
	jsonform.At(true, func(w *writer, s *model.TaskState) { w.Bool(s.Failed) }),
	jsonform.At(mark, func(w *writer, s *model.TaskState) { w.Uint(s.Restarts) }),
	jsonform.At(markedTime(1), func(w *writer, s *model.TaskState) { w.Time(unix(s.LastRestart)) }),
	jsonform.At(markedTime(2), func(w *writer, s *model.TaskState) { w.Time(unix(s.StartedAt)) }),
	jsonform.At(markedTime(3), func(w *writer, s *model.TaskState) { w.Time(unix(s.FinishedAt)) }),
	jsonform.At([]int{}, func(w *writer, s *model.TaskState) { jsonform.List(w, s.Events, writeTaskEvent) }),
)

var writeTaskEvent = jsonform.Of(api.TaskEvent{
	Type: "type", Time: mark, DisplayMessage: "shown", Details: map[string]string{"": ""}, Message: "message",
},
	jsonform.At("type", func(w *writer, e *model.TaskEvent) { w.Text(e.Type) }),
	jsonform.At(mark, func(w *writer, e *model.TaskEvent) { w.Int(e.Time) }),
	jsonform.At("shown", func(w *writer, e *model.TaskEvent) { w.Text(e.DisplayMessage) }),
	jsonform.At(map[string]string{"": ""}, func(w *writer, e *model.TaskEvent) { jsonform.Map(w, e.Details, (*writer).Text) }),
	jsonform.At("message", func(w *writer, e *model.TaskEvent) { w.Text(e.DisplayMessage) }),
)
