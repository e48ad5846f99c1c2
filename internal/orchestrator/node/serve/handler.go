// Package serve is what a node answers: the client part of Nomad's HTTP API and of docs/native-api.md, for the allocations that the node runs.
//
// A [Handler] trusts its caller. It is reached in two ways only: by the server in the same process, and over the connections that the node itself has
// opened to servers (package link). The server has asked for the caller's rights then; the handler knows the node's own allocations and no others.
//
// [Rows] is the one list of these routes. A node serves them with handlers, a server with what finds the node and passes the request on.
package serve

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/image"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/wire"
	"rockpool/internal/timeline"
)

// Node is the agent that runs the allocations. Where it does not know an allocation, or the task does not run, the error is of kind fault.NotFound.
type Node interface {
	ID() string
	// Fences is the containment table; empty where no driver isolates.
	Fences() []driver.Fence
	// Tasks are the names of an allocation's tasks, in the order of its job.
	Tasks(allocID string) ([]string, error)
	// Task is a running task.
	Task(ctx context.Context, allocID, task string) (driver.Task, error)
	Exec(ctx context.Context, allocID, task string, spec driver.ExecSpec) (driver.Execution, error)
	// Execution is known until 60 s after its end.
	Execution(allocID, task, id string) (state string, res driver.ExecResult, err error)
	SignalExecution(allocID, task, id string, signal int) error
	KillExecution(allocID, task, id string) error
	RestartTask(ctx context.Context, allocID, task string) error
	SignalTask(ctx context.Context, allocID, task string, signal int) error

	// Directory is the path of an allocation's directory, with alloc/logs and a directory for each task below it.
	Directory(allocID string) (string, error)
	// Ended reports whether a task will write no more.
	Ended(allocID, task string) (bool, error)
	// Checks are the newest results of an allocation's checks.
	Checks(allocID string) (wire.AllocCheckStatuses, error)

	// CoreMHz is the clock of one core.
	CoreMHz() int
	// DeviceStats are figures of the devices that tasks of an allocation hold.
	DeviceStats(ctx context.Context, allocID string, tasks []string) map[string][]*wire.DeviceGroupStats
	// HostStats are figures of the machine.
	HostStats(ctx context.Context) (*wire.HostStats, error)
	Metadata() *wire.NodeMetaResponse
	// ApplyMetadata changes the dynamic metadata; a nil value removes a key.
	ApplyMetadata(ctx context.Context, change map[string]*string) (*wire.NodeMetaResponse, error)
	// Collect removes what is kept of an allocation that has ended, or with "" of all of them.
	Collect(allocID string) error
}

// AttributeImages is "true" in the attributes of a node that can be asked about images.
const AttributeImages = "rockpool.images"

const (
	// AttributeHeldImages names the images of registries that a node has already, by full name and by digest, with commas between them: an affinity with the
	// operator set_contains prefers the node. It begins with unique so that nodes of one class stay one class.
	AttributeHeldImages = "unique.rockpool.images"
	// MaxHeldImages bounds how many it names.
	MaxHeldImages = 64
)

// Images is the image store of the node.
type Images interface {
	// Resolve asks what a reference means now.
	Resolve(ctx context.Context, ref string, c *image.Credentials) (image.Resolved, error)
}

// Handler answers for a node.
type Handler struct {
	node    Node
	images  Images // nil = none
	server  *endpoint.Server
	process inspect.Process
	execs   atomic.Int64 // executions that are carried now
	samples samples
	steps   *timeline.Recorder // nil = nothing is recorded
}

// New makes the handler of a node. images may be nil. The process is that of the node's agent.
func New(n Node, images Images, process inspect.Process, log logging.Logger) *Handler {
	h := &Handler{node: n, images: images, process: process}
	table := h.processTable()
	for _, r := range Rows(h) {
		table = append(table, r.Route)
	}
	h.server = endpoint.NewServer(table, endpoint.Options{
		Auth: auth.Func(func(*http.Request) (auth.Identity, error) {
			return auth.Identity{Name: "server", Management: true}, nil
		}),
		Error: func(w http.ResponseWriter, _ *http.Request, err error) { wire.WriteError(w, err) }, CompressAbove: 1024, Log: log,
		TellSteps: true,
		Trace: func(r *http.Request, _ endpoint.Route) *timeline.Span {
			return h.steps.Partner(r.Header.Get(timeline.Header))
		},
	})
	return h
}

// Record has what callers ask for recorded. It is called before anything is served.
func (h *Handler) Record(steps *timeline.Recorder) { h.steps = steps }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.server.ServeHTTP(w, r) }

func (h *Handler) probe(context.Context, auth.Identity, endpoint.None) (struct{ ID string }, error) {
	return struct{ ID string }{h.node.ID()}, nil
}

// Place says how a request names the node that answers it.
type Place uint8

// Places.
const (
	OfAllocation Place = iota // by an allocation, the variable id of its path
	OfNode                    // by the parameter node_id; without it the server's own node
	OfBody                    // by the field NodeID of its body; without it as OfNode
	OfAnyNode                 // by the parameter node_id; without it any node with images will do
)

// Row is a route that a node answers.
type Row struct {
	endpoint.Route
	Place Place
}

const (
	smallBody = 64 << 10
	filesBody = 1 << 30
)

// Rows are all routes that nodes answer. A server that only passes them on gives no handler.
func Rows(h *Handler) []Row {
	const alloc, fs = "/v1/client/allocation/{id}", "/v1/client/fs"
	files := onNode(auth.WriteFS, filesBody)
	files.Drain = true
	ofAlloc := endpoint.Table{
		// Public, because the token may come in the first message: the server has a handler of its own for it, which asks.
		endpoint.Stream(Exec, "GET", alloc+"/exec", onNode(auth.Public, 0), h.exec),
		endpoint.Call("client.execution", "GET", alloc+"/execution/{exec}", onNode(auth.AllocExec, 0), h.execution),
		endpoint.Call("client.execution.signal", "PUT", alloc+"/execution/{exec}/signal", onNode(auth.AllocExec, smallBody), h.signalExecution),
		endpoint.Call("client.execution.kill", "DELETE", alloc+"/execution/{exec}", onNode(auth.AllocExec, smallBody), h.killExecution),
		endpoint.Stream("client.files.apply", "PUT", alloc+"/files", files, h.applyFiles),
		endpoint.Stream("client.files.list", "GET", alloc+"/files", onNode(auth.ReadFS, 0), h.listFiles),
		endpoint.Stream("client.files.raw", "GET", alloc+"/files/raw", onNode(auth.ReadFS, 0), h.readFile),
		endpoint.Call("client.stats", "GET", alloc+"/stats", onNode(auth.ReadJob, 0), h.stats),
		endpoint.Call("client.checks", "GET", alloc+"/checks", onNode(auth.ReadJob, 0), h.checks),
		endpoint.Stream("client.fs.logs", "GET", fs+"/logs/{id}", onNode(auth.ReadLogs, 0), h.logs),
		endpoint.Call("client.fs.ls", "GET", fs+"/ls/{id}", onNode(auth.ReadFS, 0), h.list),
		endpoint.Call("client.fs.stat", "GET", fs+"/stat/{id}", onNode(auth.ReadFS, 0), h.stat),
		endpoint.Stream("client.fs.cat", "GET", fs+"/cat/{id}", onNode(auth.ReadFS, 0), h.cat),
		endpoint.Stream("client.fs.readat", "GET", fs+"/readat/{id}", onNode(auth.ReadFS, 0), h.readAt),
		endpoint.Stream("client.fs.stream", "GET", fs+"/stream/{id}", onNode(auth.ReadFS, 0), h.stream),
	}
	// Nomad takes these with any method; its own client asks to collect with GET.
	for _, m := range []string{"GET", "PUT", "POST"} {
		name := "." + strings.ToLower(m)
		ofAlloc = append(ofAlloc, endpoint.Call("client.gc"+name, m, alloc+"/gc", onNode(auth.SubmitJob, smallBody), h.collect))
		if m != "GET" {
			ofAlloc = append(ofAlloc,
				endpoint.Call("client.restart"+name, m, alloc+"/restart", onNode(auth.AllocLife, smallBody), h.restart),
				endpoint.Call("client.signal"+name, m, alloc+"/signal", onNode(auth.AllocLife, smallBody), h.signal))
		}
	}
	return slices.Concat(
		placed(OfAllocation, ofAlloc),
		placed(OfNode, endpoint.Table{
			endpoint.Call("node.fences", "GET", "/v1/nodes/self/fences", onNode(auth.NodeRead, 0), h.fences),
			endpoint.Call("client.host.stats", "GET", "/v1/client/stats", onNode(auth.NodeRead, 0), h.hostStats),
			endpoint.Call("client.metadata", "GET", "/v1/client/metadata", onNode(auth.NodeRead, 0), h.metadata),
			endpoint.Stream("client.collect.get", "GET", "/v1/client/gc", onNode(auth.NodeWrite, 0), h.collectAll),
			endpoint.Stream("client.collect.put", "PUT", "/v1/client/gc", onNode(auth.NodeWrite, smallBody), h.collectAll),
			endpoint.Stream("client.collect.post", "POST", "/v1/client/gc", onNode(auth.NodeWrite, smallBody), h.collectAll),
		}),
		placed(OfBody, endpoint.Table{
			endpoint.Call("client.metadata.put", "PUT", "/v1/client/metadata", onNode(auth.NodeWrite, smallBody), h.applyMetadata),
			endpoint.Call("client.metadata.post", "POST", "/v1/client/metadata", onNode(auth.NodeWrite, smallBody), h.applyMetadata),
		}),
		placed(OfAnyNode, endpoint.Table{
			endpoint.Call("image.resolve.put", "PUT", "/v1/rockpool/image/resolve", onNode(auth.SubmitJob, smallBody), h.resolveImage),
			endpoint.Call("image.resolve.post", "POST", "/v1/rockpool/image/resolve", onNode(auth.SubmitJob, smallBody), h.resolveImage),
		}),
	)
}

// Exec is the name of the row whose caller a server checks by itself.
const Exec = "client.exec"

// onNode is the policy of what a node answers. body bounds the request in bytes.
func onNode(s auth.Scope, body int64) endpoint.Policy {
	return endpoint.Policy{Scope: s, Serve: endpoint.OwningNode, Body: body}
}

func placed(p Place, t endpoint.Table) []Row {
	rows := make([]Row, 0, len(t))
	for _, r := range t {
		rows = append(rows, Row{r, p})
	}
	return rows
}

// done is the answer of what has nothing to say; clients want a body.
type done struct{ Index uint64 }
