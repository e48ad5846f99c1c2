package model

import "time"

// Periodic makes a job a template that is started by the clock.
type Periodic struct {
	Enabled         bool
	Specs           []string // cron expressions; any of them
	TimeZone        string   // IANA name; "" = UTC
	ProhibitOverlap bool     // no start while a child lives
}

// Parameterized makes a job a template that is started by dispatch.
type Parameterized struct {
	Payload      string // "", optional, required or forbidden; "" = optional
	MetaRequired []string
	MetaOptional []string
}

// VersionTag names a version of a job, which is then kept.
type VersionTag struct {
	Name        string
	Description string
	TaggedTime  int64
}

// Ways in which a group's health is found out.
const (
	HealthChecks     = "checks"
	HealthTaskStates = "task_states"
	HealthManual     = "manual"
)

// UpdatePolicy says how a new version of a service replaces the old one.
type UpdatePolicy struct {
	Stagger          time.Duration
	MaxParallel      int    // 0 = no deployment: all at once
	HealthCheck      string // checks, task_states or manual
	MinHealthyTime   time.Duration
	HealthyDeadline  time.Duration
	ProgressDeadline time.Duration // 0 = one failure fails the deployment
	Canary           int
	AutoRevert       bool
	AutoPromote      bool
}

// MigratePolicy says how allocations leave a node that is drained.
type MigratePolicy struct {
	MaxParallel     int
	HealthCheck     string
	MinHealthyTime  time.Duration
	HealthyDeadline time.Duration
}

// DefaultMigrate holds where a group says nothing; the numbers are Nomad's.
func DefaultMigrate() MigratePolicy {
	return MigratePolicy{MaxParallel: 1, HealthCheck: HealthChecks, MinHealthyTime: 10 * time.Second, HealthyDeadline: 5 * time.Minute}
}

// What stays when a node that was away comes back and its allocation was replaced meanwhile.
const (
	ReconcileBestScore       = "best_score"
	ReconcileLongestRunning  = "longest_running"
	ReconcileKeepOriginal    = "keep_original"
	ReconcileKeepReplacement = "keep_replacement"
)

// DisconnectPolicy says what becomes of an allocation whose node is cut off.
type DisconnectPolicy struct {
	LostAfter         time.Duration // until then it is unknown, not lost; 0 = lost at once
	StopOnClientAfter time.Duration // the node itself stops it after so long without servers; 0 = never
	Replace           bool          // another one runs meanwhile
	Reconcile         string        // best_score (default), longest_running, keep_original, keep_replacement
}

// Hooks of a Lifecycle.
const (
	HookPrestart  = "prestart"
	HookPoststart = "poststart"
	HookPoststop  = "poststop"
)

// Lifecycle makes a task one that runs beside the main tasks.
type Lifecycle struct {
	Hook    string
	Sidecar bool // it runs as long as the main tasks do
}

// Service is an address that a group or task offers under a name.
type Service struct {
	Name      string
	Provider  string // nomad only
	PortLabel string // of the group's network, or a number
	Address   string // "" = that of the network
	Tags      []string
	Meta      map[string]string
	TaskName  string
	Checks    []ServiceCheck
}

// ServiceCheck is how the node finds out whether a service is well.
type ServiceCheck struct {
	Name      string
	Type      string // tcp or http
	PortLabel string // "" = the service's
	Path      string
	Method    string
	Protocol  string // http or https
	Headers   map[string][]string
	Body      string
	Interval  time.Duration
	Timeout   time.Duration
	OnUpdate  string // require_healthy (default), ignore_warnings, ignore
}

// VolumeRequest asks for a directory of the node that its operator has named.
type VolumeRequest struct {
	Name     string
	Type     string // host only
	Source   string
	ReadOnly bool
}

// VolumeMount puts a volume of the group into a task.
type VolumeMount struct {
	Volume      string
	Destination string
	ReadOnly    bool
}

// Template is a file that the node writes before a task starts. Only text and the task's own environment are offered.
type Template struct {
	Text        string // EmbeddedTmpl
	Destination string // below the task's directory
	Perms       string // octal; "" = 0644
	Env         bool   // its lines are NAME=value, for the task's environment
}

// Scaling bounds a group's count.
type Scaling struct {
	ID      string
	Enabled bool
	Min     int64
	Max     int64
	Policy  map[string]any
}
