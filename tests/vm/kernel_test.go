package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kernel is a bootable image and the directory of the modules that were built with it.
type kernel struct{ image, modules string }

// findKernel looks below ROCKPOOL_VM_KERNEL, then where packages install kernels, for an image that has its modules. A cloud kernel is preferred: it
// is small and starts fast.
func findKernel(t *testing.T) kernel {
	t.Helper()
	for _, root := range []string{os.Getenv("ROCKPOOL_VM_KERNEL"), "/"} {
		if root == "" {
			continue
		}
		images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
		if err != nil {
			t.Fatal(err)
		}
		slices.SortStableFunc(images, func(a, b string) int { return cloudFirst(a) - cloudFirst(b) })
		for _, image := range images {
			_, version, _ := strings.Cut(filepath.Base(image), "-")
			k := kernel{image, filepath.Join(root, "lib/modules", version)}
			if _, err := os.Stat(filepath.Join(k.modules, "kernel")); err == nil {
				return k
			}
		}
	}
	t.Skip("no kernel to boot: install the Debian package linux-image-cloud-amd64, or unpack it and name the directory in ROCKPOOL_VM_KERNEL")
	return kernel{}
}

func cloudFirst(image string) int {
	if strings.Contains(image, "-cloud-") {
		return 0
	}
	return 1
}

// module gives the contents of a module and, before it, of what it depends on. A module that is not there is part of the image.
func (k kernel) module(name string) ([][]byte, error) {
	var file string
	err := filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, _ os.DirEntry, err error) error {
		base, _, _ := strings.Cut(filepath.Base(path), ".")
		if strings.ReplaceAll(base, "-", "_") == name && strings.Contains(path, ".ko") {
			file = path
		}
		return err
	})
	if err != nil || file == "" {
		return nil, err
	}
	text, err := unpacked(file)
	if err != nil {
		return nil, err
	}
	object, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	section := object.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var all [][]byte
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		list, ok := strings.CutPrefix(string(entry), "depends=")
		if !ok || list == "" {
			continue
		}
		for _, needed := range strings.Split(list, ",") {
			more, err := k.module(strings.ReplaceAll(needed, "-", "_"))
			if err != nil {
				return nil, err
			}
			all = append(all, more...)
		}
	}
	return append(all, text), nil
}

// unpacked reads a module, which distributions compress in several ways.
func unpacked(file string) ([]byte, error) {
	switch filepath.Ext(file) {
	case ".xz":
		return exec.Command("xz", "-dc", file).Output()
	case ".zst":
		return exec.Command("zstd", "-dc", file).Output()
	default:
		return os.ReadFile(file)
	}
}
