package main

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/tests/bench/report"
)

const (
	env  = 10 // of the environment that is measured
	pool = 16 // its idle runners

	clientsOfEcho, echoRate   = 8, 400
	clientsOfCycle, cycleRate = 6, 60
	warmEnv, warmRate         = 12, 150 // of an environment with a warm-up
	burstPool                 = 600     // of it, before a quarter of the runners is used at once
	churnRate, churnPool      = 100, 32
	idleExecutions            = 1000
	jobRate                   = 2000
	recovered                 = 1000
)

// more is what is offered where a rate is to be held: a little more than the budget, so that what is answered can be counted against it.
const more = 1.01

// named is the catalogue with the number of idle runners that a node is filled with.
func named(runners uint) []report.Figure {
	list := slices.Clone(catalogue)
	for i := range list {
		if strings.HasPrefix(list[i].Key, "Dense") {
			list[i].Name = strings.ReplaceAll(list[i].Name, "2,000", strconv.Itoa(int(runners)))
		}
	}
	return list
}

// catalogue is every figure in the order of the table. Where one has bounds it is a promise: it stands in the table of a run that does not measure it, too.
var catalogue = []report.Figure{
	{Key: "Fill", Name: "pool of 16 filled", Unit: "ms"},
	{Key: "Claim", Name: "claim, durable", Bounds: []report.Bound{report.Within(time.Millisecond), report.Tail(5 * time.Millisecond)}},
	{Key: "Destroy", Name: "destroy"},
	{Key: "Upload", Name: "upload of one 2 KB file", Bounds: []report.Bound{report.Within(2 * time.Millisecond)}},
	{Key: "EchoFirstByte", Name: "execute `echo hi` to its first byte"},
	{Key: "Echo", Name: "execute `echo hi`, POST to Close", Bounds: []report.Bound{report.Within(6 * time.Millisecond), report.Tail(20 * time.Millisecond)}},
	{Key: "EchoOffered", Name: "`echo`, stderr and exit code, 404/s offered to 8 runners", Bounds: []report.Bound{report.AtLeast(echoRate)}},
	{Key: "EchoMost", Name: "`echo`, stderr and exit code, 8 clients in a row"},
	{Key: "StdinRoundTrip", Name: "stdin round trip", Bounds: []report.Bound{report.Within(300 * time.Microsecond)}},
	{Key: "Cycle", Name: "cycle: claim, upload, `python3` hello, list, destroy", Bounds: []report.Bound{report.Within(30 * time.Millisecond)}},
	{Key: "CycleOffered", Name: "cycle, 60.6/s offered to 6 clients", Bounds: []report.Bound{report.AtLeast(cycleRate)}},
	{Key: "CycleMost", Name: "cycle, 6 clients in a row"},
	{Key: "WarmCycle", Name: "cycle with a warm-up, the pool full each time", Bounds: []report.Bound{report.Within(10 * time.Millisecond)}},
	{Key: "WarmCycleOffered", Name: "cycle with a warm-up, 151.5/s offered to 6 clients", Bounds: []report.Bound{report.AtLeast(warmRate)}},
	{Key: "WarmTaken", Name: "cycle with a warm-up, the pool full each time: programs that took it over", Unit: "%", Higher: true, Bounds: []report.Bound{report.Limit(100)}},
	{Key: "WarmTakenOffered", Name: "the same, 151.5/s offered", Unit: "%", Higher: true},
	{Key: "WarmBurst", Name: "cycle with a warm-up, 150 of them offered at 151.5/s to 6 clients, from a pool of 600"},
	{Key: "WarmTakenBurst", Name: "the same: programs that took it over", Unit: "%", Higher: true},
	{Key: "ChurnOffered", Name: "churn: 101 claims a second, each destroyed, pool of 32", Bounds: []report.Bound{report.AtLeast(churnRate)}},
	{Key: "ChurnIdle", Name: "churn: fewest idle runners of the 32 meanwhile", Unit: "runners", Higher: true, Bounds: []report.Bound{report.Limit(churnPool / 2)}},
	{Key: "ChurnMost", Name: "churn: claim and destroy, 4 clients in a row"},
	{Key: "IdleRunnersCPU", Name: "CPU of the service with 16 idle runners", Unit: "%core"},
	{Key: "IdleExecutionsCPU", Name: "CPU of the service, 1,000 idle executions", Unit: "%core", Bounds: []report.Bound{report.Limit(2)}},
	{Key: "IdleExecutionMemory", Name: "memory of the service, for each of 1,000 idle executions", Unit: "KB", Bounds: []report.Bound{report.Limit(100)}},
	{Key: "Recovery", Name: "gateway started beside 1,000 runners, until it knows them", Bounds: []report.Bound{report.Within(2 * time.Second)}},

	{Key: "SandboxCreate", Name: "sandbox created, supervisor ready", Bounds: []report.Bound{report.Within(5 * time.Millisecond)}},
	{Key: "SandboxesOffered", Name: "sandboxes created and destroyed, 202/s offered", Bounds: []report.Bound{report.AtLeast(200)}},
	{Key: "SandboxesMost", Name: "sandboxes created and destroyed, 8 in parallel"},
	{Key: "ExecTrue", Name: "`true` in a running sandbox, node level", Bounds: []report.Bound{report.Within(1500 * time.Microsecond)}},
	{Key: "ExecTruePaused", Name: "`true` in a running sandbox after a pause of 60 ms"},
	{Key: "Stream", Name: "100 MB out of a program, node level", Unit: "MB/s", Higher: true, Bounds: []report.Bound{report.Limit(200)}},
	{Key: "SandboxIdle", Name: "idle sandbox, kernel memory included", Unit: "MB", Bounds: []report.Bound{report.Limit(2)}},
	{Key: "DenseFill", Name: "pool of 2,000 filled", Unit: "s"},
	{Key: "DenseMemory", Name: "idle runner, of the machine, all in all", Unit: "MB", Bounds: []report.Bound{report.Limit(2)}},
	{Key: "DenseResident", Name: "memory of the service, 2,000 idle runners", Unit: "MB"},
	{Key: "DenseCPU", Name: "CPU of the service, 2,000 idle runners", Unit: "%core", Bounds: []report.Bound{report.Limit(1)}},
	{Key: "DenseClaim", Name: "claim, with 2,000 runners"},
	{Key: "DenseEcho", Name: "execute `echo hi`, with 2,000 runners"},
	{Key: "DenseDelete", Name: "environment of 2,000 runners deleted", Unit: "s"},

	{Key: "RegisterToRunning", Name: "register to running, one sandbox job", Bounds: []report.Bound{report.Within(10 * time.Millisecond), report.Tail(30 * time.Millisecond)}},
	{Key: "JobsOffered", Name: "2,020 jobs a second, mock driver, register to running", Bounds: []report.Bound{report.AtLeast(jobRate), report.Tail(100 * time.Millisecond)}},
	{Key: "JobsSimulated", Name: "2,000 jobs a second, simulated nodes, no sockets", Bounds: []report.Bound{report.AtLeast(jobRate), report.Tail(100 * time.Millisecond)}},
	{Key: "BulkFirst", Name: "1,000,000 placements on 10,000 simulated nodes, on memory that was not used before", Unit: "s"},
	{Key: "Bulk", Name: "1,000,000 placements on 10,000 simulated nodes", Unit: "s", Bounds: []report.Bound{report.Limit(18.1)}},
	{Key: "IdleNodes", Name: "CPU of a leader, 10,000 idle simulated nodes, both ends", Unit: "cores", Bounds: []report.Bound{report.Limit(0.5)}},
	{Key: "Flat", Name: "allocations for a job, last tenth of a million against the third", Unit: "ratio", Bounds: []report.Bound{report.Limit(1.05)}},
	{Key: "Failover", Name: "leader killed, until a write is accepted", Bounds: []report.Bound{report.Tail(2 * time.Second)}},
}

// scenarios are what can be measured, and the figures that each adds to the table.
var scenarios = []scenario{
	{"provision", needGateway, provision, []string{"Fill"}},
	{"claim", needGateway, claimAndDestroy, []string{"Claim", "Destroy"}},
	{"one", needGateway, insideOneRunner, []string{"Upload", "EchoFirstByte", "Echo", "StdinRoundTrip"}},
	{"many", needGateway, manyExecutions, []string{"EchoOffered", "EchoMost"}},
	{"idle", needService, idleRunners, []string{"IdleRunnersCPU"}},
	{"thousand", needService, thousandIdle, []string{"IdleExecutionsCPU", "IdleExecutionMemory"}},
	{"cycle", needGateway, cycle, []string{"Cycle"}},
	{"cycles", needGateway, manyCycles, []string{"CycleOffered", "CycleMost"}},
	{"warm", needGateway, warmCycles, []string{"WarmCycle", "WarmCycleOffered", "WarmTaken", "WarmTakenOffered"}},
	{"burst", needNothing, warmBurst, []string{"WarmBurst", "WarmTakenBurst"}},
	{"churn", needGateway, churn, []string{"ChurnMost"}},
	{"paced", needGateway, pacedChurn, []string{"ChurnOffered", "ChurnIdle"}},
	{"dense", needService, dense, []string{"DenseFill", "DenseMemory", "DenseResident", "DenseCPU", "DenseClaim", "DenseEcho", "DenseDelete"}},
	{"register", needNothing, registerToRunning, []string{"RegisterToRunning"}},
	{"jobs", needNothing, manyJobs, []string{"JobsOffered"}},
	{"recovery", needNothing, recovery, []string{"Recovery"}},
	{"failover", needNothing, failover, []string{"Failover"}},
	{"sandbox", needNothing, sandboxes, []string{"SandboxCreate", "SandboxesOffered", "SandboxesMost", "ExecTrue", "ExecTruePaused", "Stream", "SandboxIdle"}},
	{"simulated", needNothing, simulated, []string{"JobsSimulated", "BulkFirst", "Bulk", "IdleNodes"}},
	{"flat", needNothing, flat, []string{"Flat"}},
}

// need is what has to run before a scenario.
type need int

const (
	needNothing need = iota // it starts what it measures
	needGateway             // any, with the pool filled
	needService             // one that was started here, so that its process can be looked at
)
