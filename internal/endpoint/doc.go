// Package endpoint is the one route table and request pipeline of both HTTP servers.
//
// A row says name, method, path, scope, where it is served, body limit, deadline, decoding strictness and handler. The pipeline is
// written once, in this order: recover, request id, log and observe, locate or forward once, authenticate, authorise,
// limit, decode, handle, encode. Handlers hold rules only: they get a decoded request and return a value or an error of
// package fault, and see no header and no status code.
//
// A request type is a struct whose fields say where they come from: `path:"id"`, `query:"prefix"` (string, bool, integers, a
// time.Duration, []string) or `body:"json"`, or `body:"optional"` for JSON that may be left out. A response that implements [Statuser] or [Headerer] decides its own status and headers.
package endpoint
