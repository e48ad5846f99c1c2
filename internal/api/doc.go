// Package api is the gateway's HTTP and WebSocket API: one table of routes, their handlers, and the wire's forms.
//
// It translates and holds no rule of the domain. Every route but health and version waits until recovery is done, so that a client never hears that a
// runner or an environment is unknown only because this process does not know it yet.
package api
