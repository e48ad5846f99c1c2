package packed

import (
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/msgpack"
)

// Job makes the form in which specifications travel with allocations, ReadJob reads it.
func Job(j *model.Job) ([]byte, error) { return msgpack.Append(nil, j) }

func ReadJob(b []byte) (*model.Job, error) {
	j := new(model.Job)
	if err := msgpack.Decode(b, j); err != nil {
		return nil, fault.New(fault.Invalid, "a packed specification is damaged: %v", err)
	}
	return j, nil
}
