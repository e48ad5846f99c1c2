package wire

import "github.com/hashicorp/nomad/api"

// The documents that a node answers with.
type (
	AllocCheckStatus     = api.AllocCheckStatus
	AllocCheckStatuses   = api.AllocCheckStatuses
	AllocFileInfo        = api.AllocFileInfo
	HostCPUStats         = api.HostCPUStats
	HostDiskStats        = api.HostDiskStats
	HostMemoryStats      = api.HostMemoryStats
	HostStats            = api.HostStats
	NodeMetaApplyRequest = api.NodeMetaApplyRequest
	NodeMetaResponse     = api.NodeMetaResponse
	StreamFrame          = api.StreamFrame
)
