package timeline

// Step is what a span stands for. There are no others, so that nothing that a stranger says becomes a name.
type Step uint8

// The steps, from the gateway inwards.
const (
	Request Step = iota // one request to this process; its route is an attribute

	ClaimTake // an idle runner is picked, or waited for in line
	ClaimMark // the claim is written into the cluster

	ClusterCall  // one call to the cluster, until its answer begins
	ExecutionRun // an execution, from its WebSocket to its outcome
	ExecCall     // of that: the exec's connection to the cluster
	ExecDial     // the exec is asked for, until the cluster has taken it
	ExecByte     // from there to the first byte of output
	ExecExit     // from there, or without output from the start, to the exit code
	ExecClose    // the outcome is told to the client and the connection closed

	RunnerStart    // a runner, from its registration until the gateway knows that it is ready
	RunnerRegister // the registration's call
	RunnerPlaced   // until it has a node
	RunnerPushed   // until the node has it
	RunnerPrepared // until the node begins to make its sandbox
	RunnerStarted  // until the sandbox is there and the task runs
	RunnerReported // until the servers know
	RunnerKnown    // until the gateway knows
	RunnerIdle     // until it was claimed

	LogQueue    // an entry waits for its place on the log
	LogAppend   // it is made durable and committed: one fsync, and those of other servers
	LogApply    // the state takes it in
	LogAnswer   // whoever waits for it wakes up
	LogShared   // all of this, of an entry that shares its place with others
	Schedule    // the scheduler decides where a job runs
	PlanCheck   // a plan waits for its turn, and it is checked that it fits
	NodeRelay   // a request is passed on to its node
	NodeExec    // the node starts a program
	NodeRun     // from there until its outcome is known and all output sent
	TaskStart   // a task is started, from its turn until it runs
	TaskPrepare // an image is got ready
	TaskTurn    // a task waits for its turn and its network
	TaskCreate  // its driver starts it

	SandboxGroup   // control groups and limits are made
	SandboxSources // mounts, descriptors and the socket of the supervisor are made
	SandboxLaunch  // the supervisor's process is made
	SandboxSetup   // it makes namespaces, mounts and fences, and answers
	ExecGroup      // an execution's control group is made
	ExecStreams    // its pipes are made
	ExecRequest    // the supervisor is reached and asked, until the program is executed
	ExecFork       // of that: the supervisor's own time until its child was forked
	ExecStream     // the terminal and the process are taken over
	ExecProgram    // from the program's execution until the supervisor has told its end
	ExecEnd        // what is left of it is killed, counted, and its control group removed

	steps // how many there are
)

// names are what spans are called on every wire.
var names = [steps]string{
	Request:   "request",
	ClaimTake: "claim.take", ClaimMark: "claim.mark",
	ClusterCall:  "cluster.call",
	ExecutionRun: "execution", ExecCall: "execution.call", ExecDial: "execution.dial", ExecByte: "execution.first_byte", ExecExit: "execution.exit", ExecClose: "execution.close",
	RunnerStart: "runner", RunnerRegister: "runner.register", RunnerPlaced: "runner.placed", RunnerPushed: "runner.pushed", RunnerPrepared: "runner.prepared",
	RunnerStarted: "runner.started", RunnerReported: "runner.reported", RunnerKnown: "runner.known", RunnerIdle: "runner.idle",
	LogQueue: "log.queue", LogAppend: "log.append", LogApply: "log.apply", LogAnswer: "log.answer", LogShared: "log.shared", Schedule: "schedule", PlanCheck: "plan.check",
	NodeRelay: "node.relay", NodeExec: "node.exec", NodeRun: "node.run", TaskStart: "task.start", TaskPrepare: "task.prepare", TaskTurn: "task.turn", TaskCreate: "task.create",
	SandboxGroup: "sandbox.group", SandboxSources: "sandbox.sources", SandboxLaunch: "sandbox.launch", SandboxSetup: "sandbox.setup",
	ExecGroup: "exec.group", ExecStreams: "exec.streams", ExecRequest: "exec.request", ExecFork: "exec.fork", ExecStream: "exec.take_over",
	ExecProgram: "exec.program", ExecEnd: "exec.end",
}

func (s Step) String() string { return names[s] }

// stepOf finds a step by its name.
var stepOf = func() map[string]Step {
	m := make(map[string]Step, steps)
	for i, n := range names {
		m[n] = Step(i)
	}
	return m
}()

// Key names an attribute.
type Key uint8

// The attributes.
const (
	Route Key = iota // the row of the table that served a request
	Call             // the kind of a call to the cluster, such as job.put
	RunnerID
	ExecutionID
	AllocID
	Environment // number
	Status      // number, of an HTTP answer
	Outcome     // a word of the code

	keys // how many there are
)

var keyNames = [keys]string{"rockpool.route", "rockpool.call", "rockpool.runner_id", "rockpool.execution_id", "rockpool.alloc_id", "rockpool.environment_id", "http.response.status_code", "rockpool.outcome"}

func (k Key) String() string { return keyNames[k] }
