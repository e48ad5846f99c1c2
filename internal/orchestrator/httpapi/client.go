package httpapi

import (
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
)

func (a *API) clientTable(onNode func(auth.Scope, int64) endpoint.Policy) endpoint.Table { return nil }
