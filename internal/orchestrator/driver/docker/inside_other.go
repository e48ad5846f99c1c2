//go:build !linux

package docker

import (
	"context"
	"errors"
	"os"
)

// inside does not exist on this system: an engine's containers run in a virtual machine.
type inside struct {
	root   *os.File
	idBase int64
	group  group
}

type group struct{}

func (group) oomKills() int64 { return -1 }

func enter(int, string, string) (*inside, error) { return nil, errElsewhere }

func (*inside) admit(context.Context, int, string, int64) (*program, error) { return nil, errElsewhere }
func (*inside) close()                                                      {}

type program struct{}

func (*program) wait() error                { return errors.ErrUnsupported }
func (*program) signal(int) error           { return errors.ErrUnsupported }
func (*program) kill(context.Context) error { return errors.ErrUnsupported }
func (*program) writes() bool               { return false }
func (*program) measure() measured          { return measured{} }
func (*program) endedBy() (int, bool)       { return 0, false }
func (*program) close()                     {}
