package jobspec

import (
	"errors"

	"github.com/hashicorp/nomad/api"
)

func Parse(name string, src []byte, variables string) (*api.Job, error) {
	return nil, errors.New("TODO")
}
