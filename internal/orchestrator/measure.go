package orchestrator

import (
	"strings"
	"time"
	"unicode"

	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/consensus"
)

// measured is a state machine whose entries are timed by their kind: nomad.nomad.fsm.<entry>.
type measured struct {
	consensus.Machine
	figures *metrics.Registry
}

func (m measured) Apply(index uint64, entry []byte) (any, error) {
	start := time.Now()
	result, err := m.Machine.Apply(index, entry)
	m.figures.Since("nomad.nomad.fsm."+snake(command.Name(entry)), start)
	return result, err
}

// snake writes JobRegister as job_register.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsUpper(r) {
			if i > 0 {
				b.WriteByte('_')
			}
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}
