package model

// ServiceRegistration is one address at which an allocation offers a service.
type ServiceRegistration struct {
	ID          string
	ServiceName string
	Namespace   string
	NodeID      string
	Datacenter  string
	JobID       string
	AllocID     string
	Tags        []string
	Address     string
	Port        int
	CreateIndex uint64
	ModifyIndex uint64
}

// AllocServices is all that one allocation offers now, as its node says.
type AllocServices struct {
	AllocID  string
	Services []*ServiceRegistration // ID, ServiceName, Tags, Address and Port; the servers know the rest
}
