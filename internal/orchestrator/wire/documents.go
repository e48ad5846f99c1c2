package wire

import "github.com/hashicorp/nomad/api"

// The documents of Nomad's API that package httpapi reads and writes. They are named here so that nomad/api, whose types change with Nomad, is known to
// this package and jobspec alone.
type (
	AgentHealth                  = api.AgentHealth
	AgentHealthResponse          = api.AgentHealthResponse
	AgentMember                  = api.AgentMember
	AllocResourceUsage           = api.AllocResourceUsage
	AllocationListStub           = api.AllocationListStub
	AllocationMetric             = api.AllocationMetric
	AutopilotConfiguration       = api.AutopilotConfiguration
	CpuStats                     = api.CpuStats
	DeviceGroupStats             = api.DeviceGroupStats
	DeviceStats                  = api.DeviceStats
	Deployment                   = api.Deployment
	Evaluation                   = api.Evaluation
	EvaluationStub               = api.EvaluationStub
	Job                          = api.Job
	JobDiff                      = api.JobDiff
	JobListStub                  = api.JobListStub
	JobRegisterRequest           = api.JobRegisterRequest
	JobSummary                   = api.JobSummary
	JobValidateRequest           = api.JobValidateRequest
	JobValidateResponse          = api.JobValidateResponse
	JobsParseRequest             = api.JobsParseRequest
	LeadershipTransferResponse   = api.LeadershipTransferResponse
	MemoryStats                  = api.MemoryStats
	NodeListStub                 = api.NodeListStub
	OperatorHealthReply          = api.OperatorHealthReply
	RaftConfiguration            = api.RaftConfiguration
	RaftServer                   = api.RaftServer
	ResourceUsage                = api.ResourceUsage
	SchedulerConfiguration       = api.SchedulerConfiguration
	ServerHealth                 = api.ServerHealth
	StatObject                   = api.StatObject
	StatValue                    = api.StatValue
	ServerMembers                = api.ServerMembers
	TaskResourceUsage            = api.TaskResourceUsage
	DeploymentAllocHealthRequest = api.DeploymentAllocHealthRequest
	DeploymentFailRequest        = api.DeploymentFailRequest
	DeploymentPauseRequest       = api.DeploymentPauseRequest
	DeploymentPromoteRequest     = api.DeploymentPromoteRequest
	DrainSpec                    = api.DrainSpec
	EvalDeleteRequest            = api.EvalDeleteRequest
	JobDispatchRequest           = api.JobDispatchRequest
	JobEvaluateRequest           = api.JobEvaluateRequest
	JobPlanRequest               = api.JobPlanRequest
	JobPlanResponse              = api.JobPlanResponse
	JobRevertRequest             = api.JobRevertRequest
	JobScaleStatusResponse       = api.JobScaleStatusResponse
	JobStabilityRequest          = api.JobStabilityRequest
	JobSubmission                = api.JobSubmission
	NodeUpdateDrainRequest       = api.NodeUpdateDrainRequest
	ScalingEvent                 = api.ScalingEvent
	ScalingPolicy                = api.ScalingPolicy
	ScalingPolicyListStub        = api.ScalingPolicyListStub
	ScalingRequest               = api.ScalingRequest
	TagVersionRequest            = api.TagVersionRequest
	TaskGroupScaleStatus         = api.TaskGroupScaleStatus
)
