package wire

import "github.com/hashicorp/nomad/api"

// The documents of Nomad's API that package httpapi reads and writes. They are named here so that nomad/api, whose types change with Nomad, is known to
// this package and jobspec alone.
type (
	AgentHealth                = api.AgentHealth
	AgentHealthResponse        = api.AgentHealthResponse
	AgentMember                = api.AgentMember
	AllocResourceUsage         = api.AllocResourceUsage
	Allocation                 = api.Allocation
	AllocationListStub         = api.AllocationListStub
	AutopilotConfiguration     = api.AutopilotConfiguration
	CpuStats                   = api.CpuStats
	Deployment                 = api.Deployment
	Evaluation                 = api.Evaluation
	EvaluationStub             = api.EvaluationStub
	Job                        = api.Job
	JobDiff                    = api.JobDiff
	JobListStub                = api.JobListStub
	JobRegisterRequest         = api.JobRegisterRequest
	JobSummary                 = api.JobSummary
	JobValidateRequest         = api.JobValidateRequest
	JobValidateResponse        = api.JobValidateResponse
	JobsParseRequest           = api.JobsParseRequest
	LeadershipTransferResponse = api.LeadershipTransferResponse
	MemoryStats                = api.MemoryStats
	NodeListStub               = api.NodeListStub
	OperatorHealthReply        = api.OperatorHealthReply
	RaftConfiguration          = api.RaftConfiguration
	RaftServer                 = api.RaftServer
	ResourceUsage              = api.ResourceUsage
	SchedulerConfiguration     = api.SchedulerConfiguration
	ServerHealth               = api.ServerHealth
	ServerMembers              = api.ServerMembers
	TaskResourceUsage          = api.TaskResourceUsage
)
