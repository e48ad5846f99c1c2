package hostile

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const compiler = "gcc -O1 -w -pthread"

// file is the program as a runner gets it, and the command that runs it. Where HOSTILE_COMPILED names a directory that [TestCompile] has filled, no
// compiler is needed inside.
func (k attack) file() (name string, content []byte, command string, err error) {
	source := []byte(prelude[k.language] + k.program)
	switch dir := os.Getenv("HOSTILE_COMPILED"); {
	case k.language == "py":
		return "attack.py", source, "exec /usr/bin/python3 attack.py", nil
	case dir == "":
		return "attack.c", source, compiler + " -o attack attack.c && exec ./attack", nil
	default:
		content, err = os.ReadFile(filepath.Join(dir, k.compiledName()))
		return "attack", content, "cp attack attack.own && chmod +x attack.own && exec ./attack.own", err
	}
}

func (k attack) compiledName() string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(k.program)))[:16]
}

// TestCompile compiles the chosen programs for a machine that has no compiler.
func TestCompile(t *testing.T) {
	dir := os.Getenv("HOSTILE_COMPILE")
	if dir == "" {
		t.Skip("nobody asks for compiled programs: HOSTILE_COMPILE names no directory")
	}
	for _, k := range chosen() {
		if k.language != "c" {
			continue
		}
		source := filepath.Join(t.TempDir(), "attack.c")
		if err := os.WriteFile(source, []byte(prelude["c"]+k.program), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("sh", "-c", compiler+` -o "$1" "$2"`, "sh", filepath.Join(dir, k.compiledName()), source).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", k.id, err, out)
		}
	}
}
