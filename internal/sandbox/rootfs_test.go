//go:build linux && cgo

package sandbox_test

import (
	"strings"
	"testing"
)

// /dev, and what covers parts of /proc, lie on the file system that a sandbox writes to. There is no way to them but the mounts that are read-only.
func TestWhatTheNodeMadeOnTheWritableFileSystemCannotBeChanged(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, user := range []string{"root", "user"} {
		for _, attempt := range []string{
			": > /dev/planted", "mkdir /dev/planted", "ln /dev/null /tmp/null", "ln /proc/keys /tmp/keys", "mv /dev/null /tmp/null", "rm -f /dev/full", "rmdir /dev/shm",
			"chmod 0 /dev/null", "chown user /dev/null", "touch -d yesterday /dev/null", "echo x > /proc/keys", "chmod 777 /proc/keys", ": > /proc/bus/planted",
			"mknod /tmp/null c 1 3", "cp -a /dev/null /tmp/null && test -c /tmp/null", "mv -T /tmp /dev/pts", "test -e /proc/self/cwd/../cover", "cat /proc/keys | grep .",
		} {
			if o := shell(t, s, user, attempt); o.ExitCode == 0 {
				t.Errorf("%s: %s got through: %s", user, attempt, o.stdout)
			}
		}
		if o := shell(t, s, user, "echo x > /dev/null && test ! -s /dev/null && head -c 3 /dev/zero | wc -c"); strings.TrimSpace(o.stdout) != "3" {
			t.Errorf("%s: the devices do not work: %+v", user, o)
		}
	}
}

// Each file system has the kernel allocate memory for every control group of the machine: a sandbox is made of few.
func TestASandboxMakesFewFileSystems(t *testing.T) {
	s := create(t, newRuntime(t))
	o := shell(t, s, "root", "cat /proc/self/mountinfo")
	made, seen := map[string]int{}, map[string]bool{}
	for line := range strings.Lines(o.stdout) {
		mount, kind, _ := strings.Cut(line, " - ")
		device := strings.Fields(mount)[2]
		if kind, _, _ = strings.Cut(kind, " "); !seen[kind+device] {
			seen[kind+device] = true
			made[kind]++
		}
	}
	// The writable layer and /dev/shm; what a bind shows is the node's.
	if made["tmpfs"] != 2 || made["proc"] != 1 || made["devpts"] != 1 || made["mqueue"] != 0 || made["sysfs"] != 0 {
		t.Errorf("it shows more or fewer file systems than it is to have:\n%s", o.stdout)
	}
}
