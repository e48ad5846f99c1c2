package service

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Main builds packages into a directory of its own, says where that is, and runs a package's tests. Without root nothing is built: the tests skip themselves then.
func Main(m *testing.M, tests string, binaries *string, packages ...string) int {
	if os.Getuid() != 0 {
		fmt.Printf("%s are skipped: sandboxes need root\n", tests)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "rockpool-tests-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", append([]string{"build", "-o", dir + "/"}, packages...)...).CombinedOutput(); err != nil {
		fmt.Printf("building: %v\n%s\n", err, out)
		return 1
	}
	*binaries = dir
	return m.Run()
}
