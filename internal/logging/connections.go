package logging

import (
	"log"
	"strings"
)

// Connections takes in what an http.Server logs: each line is about one connection that failed, which is its client's affair.
func Connections(l Logger) *log.Logger { return log.New(connections{l}, "", 0) }

type connections struct{ log Logger }

func (c connections) Write(p []byte) (int, error) {
	c.log.WithField("error", strings.TrimSpace(string(p))).Debug("a connection failed")
	return len(p), nil
}
