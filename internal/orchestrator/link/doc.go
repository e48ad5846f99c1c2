// Package link carries HTTP requests from servers to nodes that have no open port.
//
// A node holds one connection to each server: an HTTP request that the server upgrades, multiplexed with yamux. The server opens a stream for a
// request and speaks HTTP/1.1 on it; the node serves it with the handler that a node in the server's own process is reached by directly. So there is
// one kind of request, with or without a wire between: streamed bodies, upgrades to WebSocket and half-closes are those of net/http, and a client that
// leaves ends the request on the node.
//
// # Invariants
//
//   - Only the side that accepted the connection, a server, opens streams; what a node opens is never answered.
//   - The newest connection of a node gets the new requests. One that it replaces is left to end by itself.
//   - A stream is read into a bounded window, so that a client that does not read holds up nothing but its own stream. The number of streams of a
//     connection is bounded too; what is beyond gets an error at once.
//   - A connection that says nothing is found out within [silence] and ends its requests with an error: never with a complete answer.
package link

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// Protocol is what the connection's request is upgraded to.
	Protocol = "rockpool-node/1"

	// silence is how long a ping, or a write, may take; pings go out as often.
	silence = 5 * time.Second
	// maxStreams bounds the requests that one node carries for one server at a time.
	maxStreams = 2048
	// window is how many bytes of a stream wait for a slow reader.
	window = 256 << 10
)

// settings of both ends.
func settings() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = maxStreams
	c.EnableKeepAlive, c.KeepAliveInterval, c.ConnectionWriteTimeout = true, silence, silence
	c.MaxStreamWindowSize = window
	c.StreamCloseTimeout = 30 * time.Second
	c.LogOutput = io.Discard // the end of a connection is told by those who hold it
	return c
}
