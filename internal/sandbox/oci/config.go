package oci

import "github.com/sirupsen/logrus"

// Config configures a Runtime. Several on one machine share MountDir, CgroupParent and IDBase; each needs a Dir of its own.
type Config struct {
	Name         string             // that jobs ask for: letters, digits, "-" and "."
	Program      string             // path of the runtime's program
	Dir          string             // state; made with mode 0700, must be the runtime's own
	MountDir     string             // where root file systems are put together; default /run/rockpool-oci
	CgroupParent string             // name of the control group that holds all sandboxes; default "rockpool"
	IDBase       uint32             // first host uid and gid of the range; default 0x50000000; 65536 ids for each sandbox
	MaxSandboxes int                // of all runtimes that share MountDir; default 1024
	Log          logrus.FieldLogger // default: discard
}

const idsPerSandbox = 1 << 16
