//go:build linux && cgo

package oci_test

import (
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What runs inside is cut out of the node's program. It must refer to nothing but itself: no function of a library, no
// constant that the compiler put elsewhere.
func TestTheProgramInsideStandsAlone(t *testing.T) {
	for _, compiler := range []string{"gcc", "aarch64-linux-gnu-gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) {
			if _, err := exec.LookPath(compiler); err != nil {
				t.Skipf("%s is not installed here", compiler)
			}
			object := filepath.Join(t.TempDir(), "inside.o")
			if text, err := exec.Command(compiler, "-std=gnu11", "-O2", "-g", "-fPIC", "-fno-stack-protector", "-c", "inside_linux.c", "-o", object).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			f, err := elf.Open(object)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			symbols, err := f.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			for _, s := range f.Sections {
				if s.Type != elf.SHT_RELA || !strings.HasPrefix(f.Sections[s.Info].Name, "rockpool_") {
					continue
				}
				text, err := s.Data()
				if err != nil {
					t.Fatal(err)
				}
				for ; len(text) >= 24; text = text[24:] {
					seen++
					symbol := symbols[binary.LittleEndian.Uint64(text[8:])>>32-1]
					where := ""
					if int(symbol.Section) < len(f.Sections) {
						where = f.Sections[symbol.Section].Name
					}
					if !strings.HasPrefix(where, "rockpool_") {
						t.Errorf("it refers to %q in section %q", symbol.Name, where)
					}
				}
			}
			if seen == 0 {
				t.Error("no reference was found: this test looks at the wrong thing")
			}
		})
	}
}
