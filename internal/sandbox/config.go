package sandbox

import (
	"regexp"
	"time"

	"github.com/sirupsen/logrus"
)

// Config configures a [Runtime]. Two runtimes on one machine need a Dir, a CgroupParent and a range of ids of their own.
type Config struct {
	Dir             string // state; made with mode 0700, must be the runtime's own
	CgroupParent    string // name of the control group that holds all sandboxes; default "rockpool"
	IDBase          uint32 // first host uid and gid of the range; default 0x20000000; 65536 ids for each sandbox
	MaxSandboxes    int    // default 1024
	AllowUnconfined bool   // run although memory and pids cannot be limited on this machine
	// TidyAfter is how long the empty control groups, the directory and the network namespace of an ended sandbox, and one open file, may stay, so that their
	// removal takes no processor from a burst: the kernel looks at every file system of the machine for a group. At most 256 stay. Default 0: nothing stays.
	TidyAfter time.Duration
	Log       logrus.FieldLogger // default: discard
}

const idsPerSandbox = 1 << 16

var validID = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// withDefaults replaces what is zero by what spec.go documents.
func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.MemoryBytes, 512<<20)
	set(&l.CPUShares, 100)
	set(&l.PIDs, 512)
	set(&l.DiskBytes, 256<<20)
	set(&l.DiskInodes, 65536)
	set(&l.OpenFiles, 4096)
	set(&l.FileSizeBytes, l.DiskBytes)
	return l
}
