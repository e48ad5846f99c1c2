package api

import (
	"rockpool/internal/api/access"
	"rockpool/internal/endpoint"
)

// nobody watches.
type nobody struct{}

func (nobody) Begin(string)                        {}
func (nobody) Observe(endpoint.Observation)        {}
func (nobody) Refused(string)                      {}
func (nobody) ExecutionStored(int, string, string) {}
func (nobody) ExecutionBegun(int, string, string) func(string, string, int64, int64) {
	return func(string, string, int64, int64) {}
}

// tokens are the one of a secret.
func tokens(secret string) *access.Tokens {
	t, err := access.Load(secret, "")
	if err != nil {
		panic(err)
	}
	return t
}
