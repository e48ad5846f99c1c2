//go:build linux && cgo

package sandbox

import "os"

// FilesOf gives access to a tree on the node that is another sandbox's root, whose ids start at idBase. There is no process
// to look with: /proc is what lies in the tree. The caller keeps root open and closes it.
func FilesOf(root *os.File, idBase uint32, of Root) *Files {
	return &Files{&Sandbox{runtime: &Runtime{cfg: Config{IDBase: idBase}}, root: root, spec: Spec{Root: of}}}
}
