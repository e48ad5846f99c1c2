package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// initramfs writes a cpio archive of the format "newc" (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst), not compressed:
// an emulated machine unpacks that fastest.
type initramfs struct {
	w    *bufio.Writer
	err  error // the first one; writing goes on as if nothing happened
	have map[string]bool
	inos int
}

func newInitramfs(w io.Writer) *initramfs {
	return &initramfs{w: bufio.NewWriter(w), have: make(map[string]bool)}
}

func (a *initramfs) write(parts ...[]byte) {
	for _, p := range parts {
		if _, err := a.w.Write(p); err != nil && a.err == nil {
			a.err = err
		}
	}
}

// entry writes one file, directory, link or device, once. The mode has the bits of stat.
func (a *initramfs) entry(name string, mode uint32, mtime int64, device [2]int, content []byte) {
	name = strings.TrimPrefix(name, "/")
	if a.have[name] {
		return
	}
	a.have[name] = true
	a.inos++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inos, mode, 0, 0, 1, mtime, len(content), 0, 0, device[0], device[1], len(name)+1, 0, name)
	a.write([]byte(header), padding(len(header)), content, padding(len(content)))
}

func padding(n int) []byte { return make([]byte, -n&3) }

func (a *initramfs) dir(name string, mode uint32) {
	a.entry(name, syscall.S_IFDIR|mode, 0, [2]int{}, nil)
}

func (a *initramfs) file(name string, mode uint32, content []byte) {
	a.entry(name, syscall.S_IFREG|mode, 0, [2]int{}, content)
}

func (a *initramfs) close() error {
	a.entry("TRAILER!!!", 0, 0, [2]int{}, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

// host copies a file of this system to the same place, with the directories and the links that lead to it. A directory is taken without what is in it.
func (a *initramfs) host(path string) error {
	at := "/"
	rest := strings.Split(strings.Trim(path, "/"), "/")
	for links := 0; len(rest) > 0; rest = rest[1:] {
		next := filepath.Join(at, rest[0])
		info, err := os.Lstat(next)
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		switch info.Mode().Type() {
		case fs.ModeDir:
			a.dir(next, stat.Mode&0o7777)
			at = next
		case fs.ModeSymlink:
			if links++; links > 40 {
				return fmt.Errorf("%s: too many links", path)
			}
			target, err := os.Readlink(next)
			if err != nil {
				return err
			}
			a.entry(next, stat.Mode, 0, [2]int{}, []byte(target))
			if !filepath.IsAbs(target) {
				target = filepath.Join(at, target)
			}
			at = "/"
			rest = append(append([]string{""}, strings.Split(strings.Trim(filepath.Clean(target), "/"), "/")...), rest[1:]...)
		case 0:
			content, err := os.ReadFile(next)
			if err != nil {
				return err
			}
			a.entry(next, stat.Mode, stat.Mtim.Sec, [2]int{}, content)
		default:
			return fmt.Errorf("%s is a %v", next, info.Mode().Type())
		}
	}
	return nil
}

// programs copies programs with the libraries that they are linked with. What this system does not have is left out, and the tests that want it skip.
func (a *initramfs) programs(names ...string) error {
	var paths []string
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			paths = append(paths, path)
		}
	}
	return a.linked(paths...)
}

// linked copies files, and what the dynamic linker adds to those of them that are programs or libraries.
func (a *initramfs) linked(paths ...string) error {
	// It fails because of one static program or text file, and tells about the others all the same.
	listing, _ := exec.Command("ldd", paths...).Output()
	for field := range strings.FieldsSeq(string(listing)) {
		if strings.HasPrefix(field, "/") && !strings.HasSuffix(field, ":") {
			paths = append(paths, field)
		}
	}
	for _, path := range paths {
		if err := a.host(path); err != nil {
			return err
		}
	}
	return nil
}

// python copies the interpreter and, of its library, what the modules named need.
func (a *initramfs) python(modules string) error {
	const interpreter = "/usr/bin/python3"
	list := "import sys, " + modules + `
for m in list(sys.modules.values()):
    for path in (getattr(m, "__file__", None), getattr(m, "__cached__", None)):
        if path: print(path)`
	files, err := exec.Command(interpreter, "-c", list).Output()
	if err != nil {
		return nil // there is none, or one without these modules: the tests that want it say so
	}
	paths := []string{interpreter}
	for path := range strings.FieldsSeq(string(files)) {
		if _, err := os.Stat(path); err == nil {
			paths = append(paths, path)
		}
	}
	return a.linked(paths...)
}
