//go:build linux && cgo

package sandbox

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The supervisor begins where no library has: what it called of one, or had a dynamic linker fill in, would be found out by whoever first comes that way.
func TestTheSupervisorNeedsNoLibrary(t *testing.T) {
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler")
	}
	sources, err := filepath.Glob("*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	wanted, had := map[string]string{}, map[string]bool{}
	for _, source := range sources {
		object := filepath.Join(t.TempDir(), source+".o")
		if out, err := exec.Command(compiler, "-std=gnu11", "-O2", "-fPIC", "-fno-stack-protector", "-c", "-o", object, source).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", source, err, out)
		}
		f, err := elf.Open(object)
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			switch {
			case s.Section == elf.SHN_UNDEF && s.Name != "" && s.Name != "_GLOBAL_OFFSET_TABLE_":
				wanted[s.Name] = source
			case s.Section != elf.SHN_UNDEF && elf.ST_VISIBILITY(s.Other) == elf.STV_HIDDEN:
				had[s.Name] = true
			}
		}
		for _, s := range f.Sections {
			if strings.HasPrefix(s.Name, ".data.rel") && s.Size > 0 {
				t.Errorf("%s has addresses in its data: a position-independent program would need them filled in", source)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, source := range wanted {
		if !had[name] {
			t.Errorf("%s calls or uses %s, which is none of the supervisor's own hidden symbols", source, name)
		}
	}
}
