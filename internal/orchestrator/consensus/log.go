package consensus

import (
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/go-hclog"

	"rockpool/internal/logging"
)

// bridge makes hclog write to our log. Levels of hclog are kept; its info lines are debug to us, for they speak of every
// election and snapshot.
func bridge(log logging.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Info})
	l.RegisterSink(sink{log})
	return l
}

type sink struct{ log logging.Logger }

func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	f := logging.Fields{"component": name}
	for i := 0; i+1 < len(args); i += 2 {
		f[fmt.Sprint(args[i])] = args[i+1]
	}
	e := s.log.WithFields(f)
	switch {
	case level >= hclog.Error && !strings.HasSuffix(fmt.Sprint(f["error"]), errEnding.Error()):
		e.Error(msg)
	case level == hclog.Warn && !first(f):
		e.Warn(msg)
	default:
		e.Debug(msg)
	}
}

// first reports whether a line speaks of a server's first election: that nobody has led before is how every start looks.
func first(f logging.Fields) bool {
	id, ok := f["last-leader-id"]
	return ok && fmt.Sprint(id) == ""
}
