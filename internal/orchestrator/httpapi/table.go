package httpapi

import (
	"net/http"
	"slices"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
)

const (
	jobBody   = 4 << 20
	smallBody = 64 << 10
	nodeBody  = 16 << 20
	registers = 2 << 20 // a node, with all its devices and attributes, which the state keeps
	short     = 30 * time.Second
)

// read is the policy of what is answered from the state: by the leader, or by any server that is asked for a stale answer. What is about the server itself,
// public or for those who may read agents, is always answered by the one that is asked.
func read(s auth.Scope) endpoint.Policy {
	if s == auth.Public || s == auth.AgentRead {
		return anywhere(s)
	}
	return endpoint.Policy{Scope: s, Serve: endpoint.LeaderUnlessStale}
}

// anywhere is that of what any server answers, however far behind the leader it is: streams of changes.
func anywhere(s auth.Scope) endpoint.Policy {
	return endpoint.Policy{Scope: s, Serve: endpoint.AnyServer}
}

// write is that of what the leader decides. body bounds the request in bytes.
func write(s auth.Scope, body int64) endpoint.Policy {
	return endpoint.Policy{Scope: s, Serve: endpoint.Leader, Body: body, Timeout: short}
}

// putAndPost lists the rows of writes for both methods, as Nomad has it. rows gets the method and what to end the names of rows with.
func putAndPost(rows func(method, name string) endpoint.Table) endpoint.Table {
	return append(rows("PUT", ".put"), rows("POST", ".post")...)
}

// table is all routes. Each area lists its own in a file of its own.
func (a *API) table() endpoint.Table {
	return slices.Concat(a.coreTable(), a.clientTable(), a.serverTable(), a.accessTable(), a.jobLifeTable(), a.deploymentTable(), a.scalingTable(),
		a.nodeLifeTable(), a.explainTable(), a.processTable())
}

// Routes lists all that is served.
func (a *API) Routes() endpoint.Table { return a.table() }

func (a *API) coreTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("job.list", "GET", "/v1/jobs", read(auth.ListJobs), a.listJobs),
		endpoint.Call("job.get", "GET", "/v1/job/{id}", read(auth.ReadJob), a.getJob),
		endpoint.Stream("job.delete", "DELETE", "/v1/job/{id}", write(auth.SubmitJob, smallBody), a.deleteJob),
		endpoint.Call("job.allocations", "GET", "/v1/job/{id}/allocations", read(auth.ReadJob), a.listJobAllocs),
		endpoint.Call("job.evaluations", "GET", "/v1/job/{id}/evaluations", read(auth.ReadJob), a.listJobEvals),
		endpoint.Call("job.summary", "GET", "/v1/job/{id}/summary", read(auth.ReadJob), a.getJobSummary),
		endpoint.Call("job.deployments", "GET", "/v1/job/{id}/deployments", read(auth.ReadJob), a.listJobDeployments),
		endpoint.Call("job.deployment", "GET", "/v1/job/{id}/deployment", read(auth.ReadJob), a.getJobDeployment),
		endpoint.Call("job.versions", "GET", "/v1/job/{id}/versions", read(auth.ReadJob), a.getJobVersions),

		endpoint.Call("evaluation.list", "GET", "/v1/evaluations", read(auth.ReadJob), a.listEvals),
		endpoint.Call("evaluation.count", "GET", "/v1/evaluations/count", read(auth.ReadJob), a.countEvals),
		endpoint.Call("evaluation.delete", "DELETE", "/v1/evaluations", write(auth.Management, nodeBody), a.deleteEvals),
		endpoint.Call("evaluation.get", "GET", "/v1/evaluation/{id}", read(auth.ReadJob), a.getEval),
		endpoint.Call("evaluation.allocations", "GET", "/v1/evaluation/{id}/allocations", read(auth.ReadJob), a.listEvalAllocs),
		endpoint.Call("allocation.list", "GET", "/v1/allocations", read(auth.ReadJob), a.listAllocs),
		endpoint.Call("allocation.get", "GET", "/v1/allocation/{id}", read(auth.ReadJob), a.getAlloc),

		endpoint.Call("node.list", "GET", "/v1/nodes", read(auth.NodeRead), a.listNodes),
		endpoint.Call("node.get", "GET", "/v1/node/{id}", read(auth.NodeRead), a.getNode),
		endpoint.Call("node.allocations", "GET", "/v1/node/{id}/allocations", read(auth.NodeRead), a.listNodeAllocs),

		endpoint.Stream("event.stream", "GET", "/v1/event/stream", anywhere(auth.AnyRight), a.streamEvents),
		endpoint.Call("agent.self", "GET", "/v1/agent/self", read(auth.AgentRead), a.agentSelf),
		endpoint.Call("agent.health", "GET", "/v1/agent/health", read(auth.Public), a.agentHealth),
		endpoint.Call("volume.list", "GET", "/v1/volumes", read(auth.ListJobs), a.noCSI),
		endpoint.Call("plugin.list", "GET", "/v1/plugins", read(auth.PluginList), a.noCSI),
		endpoint.Call("scheduler.get", "GET", "/v1/operator/scheduler/configuration", read(auth.OpRead), a.getSchedulerConfig),

		endpoint.Call("node.watch.register", "PUT", "/v1/internal/node/{id}/register", write(auth.NodeSelf, registers), a.registerNode),
		endpoint.Call("node.watch.heartbeat", "PUT", "/v1/internal/node/{id}/heartbeat", write(auth.NodeSelf, smallBody), a.heartbeat),
		endpoint.Call("node.watch.allocations", "PUT", "/v1/internal/node/{id}/allocations", write(auth.NodeSelf, nodeBody), a.reportAllocs),
		endpoint.Stream("node.watch", "GET", "/v1/internal/node/{id}/watch", anywhere(auth.NodeSelf), a.watchNode),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Stream("job.register"+name, method, "/v1/jobs", write(auth.SubmitJob, jobBody), a.registerJob),
			endpoint.Stream("job.update"+name, method, "/v1/job/{id}", write(auth.SubmitJob, jobBody), a.updateJob),
			endpoint.Call("job.parse"+name, method, "/v1/jobs/parse", write(auth.ParseJob, jobBody), a.parseJob),
			endpoint.Call("job.validate"+name, method, "/v1/validate/job", write(auth.ReadJob, jobBody), a.validateJob),
			endpoint.Stream("allocation.stop"+name, method, "/v1/allocation/{id}/stop", write(auth.AllocLife, smallBody), a.stopAlloc),
			endpoint.Call("node.eligibility"+name, method, "/v1/node/{id}/eligibility", write(auth.NodeWrite, smallBody), a.setEligibility),
			endpoint.Call("scheduler.set"+name, method, "/v1/operator/scheduler/configuration", write(auth.OpWrite, smallBody), a.setSchedulerConfig),
			endpoint.Call("system.gc"+name, method, "/v1/system/gc", write(auth.Management, smallBody), a.collect),
		}
	})...)
}

// nodeInPath is the node that the path of an internal route names.
func nodeInPath(r *http.Request) string { return endpoint.PathVar(r, "id") }
