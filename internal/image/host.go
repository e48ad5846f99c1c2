package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"rockpool/internal/sandbox"
)

// configuration is what of the node's /etc is shown inside. An allow list: what is not known to be harmless stays outside.
// Directories are taken with what is in them.
var configuration = []string{
	"alternatives", "bash_completion.d", "ca-certificates.conf", "ethertypes", "fonts", "gai.conf", "groff", "host.conf", "inputrc",
	"java", "jvm", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "localtime", "magic", "magic.mime", "mailcap",
	"maven", "mime.types", "os-release", "perl", "protocols", "rpc", "services", "shells", "ssl/certs", "ssl/openssl.cnf",
	"terminfo", "timezone", "debian_version", "R", "ghc", "lua", "mono", "php", "xml", "ImageMagick-6",
	"pki/tls/certs", "pki/ca-trust/extracted", "crypto-policies", "redhat-release", "alpine-release", "xattr.conf",
}

// patterns are families of directories with a version in their name.
var patterns = []string{"python*", "java-*", "php*", "ruby*", "ImageMagick*"}

// refused are names that hold keys or passwords wherever they occur, whatever list says otherwise.
var refused = []string{"private", "*.key", "*.p12", "*.pfx", "*.jks.bak", "*shadow*", "*passw*", "*secret*", "*credential*", "settings-security.xml", "settings.xml", "*.netrc"}

const maxCopied = 64 << 20 // bytes; a node with more in these places has something unusual there

var made = map[string]string{
	"passwd":        "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"group":         "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1\tlocalhost runner\n::1\tlocalhost\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nprotocols: files\nservices: files\n",
	"profile":       "export PATH=\"${PATH:-" + searchPath + "}\"\n",
	"bash.bashrc":   "# Prints nothing: its output would be taken for the program's.\n",
	"resolv.conf":   "",
	"hostname":      "runner\n",
}

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// buildHost makes the skeleton, named after its contents. One of an earlier process of the node is used again when it is the
// same, and is never changed or removed: sandboxes that outlived that process still stand on it.
func (s *Store) buildHost() (*sandbox.Root, error) {
	building, err := os.MkdirTemp(filepath.Join(s.cfg.Dir, workDir), "host-")
	if err != nil {
		return nil, err
	}
	root, err := s.fill(building)
	var sum string
	if err == nil {
		sum, err = fingerprint(building)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(building))
	}
	final := filepath.Join(s.cfg.Dir, "host-"+sum)
	if err := os.Rename(building, final); err != nil {
		if err := errors.Join(os.RemoveAll(building), existing(final)); err != nil {
			return nil, err
		}
	}
	for i, bind := range root.Binds {
		if rest, ok := strings.CutPrefix(bind.Source, building); ok {
			root.Binds[i].Source = final + rest
		}
	}
	root.Lower = []string{final}
	return root, nil
}

func existing(dir string) error {
	_, err := os.Stat(dir)
	return err
}

// fingerprint sums names, modes, link targets and contents of a tree.
func fingerprint(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, linkErr := os.Readlink(path)
			content, err = []byte(target), linkErr
		case info.Mode().IsRegular():
			content, err = os.ReadFile(path)
		}
		fmt.Fprintf(sum, "%q %v %d\n%s\n", strings.TrimPrefix(path, dir), info.Mode(), len(content), content)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)[:12]), err
}

func (s *Store) fill(lower string) (*sandbox.Root, error) {
	if err := os.Chmod(lower, 0o755); err != nil {
		return nil, err
	}
	for _, dir := range []string{"dev", "etc", "home/user", "opt", "proc", "root", "run", "srv", "tmp", "usr", "var/tmp", "var/lib", "workspace"} {
		if err := os.MkdirAll(filepath.Join(lower, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(lower, "home/user"), 1000, 1000); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(filepath.Join(lower, "root"), 0o700); err != nil {
		return nil, err
	}
	root := &sandbox.Root{
		Lower: []string{lower}, WorkDir: "/workspace",
		Env:   []string{"PATH=" + searchPath, "LANG=C.UTF-8"},
		Binds: []sandbox.Bind{{Source: filepath.Join(s.system, "usr"), Target: "/usr"}},
	}
	if err := s.topLevel(lower, root); err != nil {
		return nil, err
	}
	// Configuration that an administrator put below /usr, and sources, are the node's own.
	for _, hidden := range []string{"/usr/local/etc", "/usr/src"} {
		if stat, err := os.Lstat(filepath.Join(s.system, hidden)); err == nil && stat.IsDir() {
			root.Binds = append(root.Binds, sandbox.Bind{Target: hidden})
		}
	}
	return root, s.configure(filepath.Join(lower, "etc"))
}

// topLevel shows /bin, /lib and the like as the node has them: as links into /usr, or as directories.
func (s *Store) topLevel(lower string, root *sandbox.Root) error {
	names := []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}
	for _, name := range names {
		source := filepath.Join(s.system, name)
		stat, err := os.Lstat(source)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case stat.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(source)
			if err == nil {
				err = os.Symlink(target, filepath.Join(lower, name))
			}
			if err != nil {
				return err
			}
		case stat.IsDir():
			if err := os.Mkdir(filepath.Join(lower, name), 0o755); err != nil {
				return err
			}
			root.Binds = append(root.Binds, sandbox.Bind{Source: source, Target: "/" + name})
		}
	}
	return nil
}

func (s *Store) configure(etc string) error {
	names := append([]string(nil), configuration...)
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(s.system, "etc", pattern))
		for _, path := range found {
			names = append(names, filepath.Base(path))
		}
	}
	budget := int64(maxCopied)
	for _, name := range names {
		if err := copyTree(filepath.Join(s.system, "etc", name), filepath.Join(etc, name), &budget); err != nil {
			return fmt.Errorf("copy /etc/%s: %w", name, err)
		}
	}
	for name, text := range made {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/self/mounts", filepath.Join(etc, "mtab")); err != nil {
		return err
	}
	return nil
}

// copyTree copies regular files and links that everyone on the node may read. What only root may read has a reason to be
// so, and stays outside. A link out of /etc is kept as it is: it is resolved inside, where only what is shown exists.
func copyTree(from, to string, budget *int64) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		if isRefused(entry.Name()) {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		info, err := entry.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		switch {
		case entry.IsDir():
			if info.Mode().Perm()&0o005 != 0o005 {
				return filepath.SkipDir
			}
			return os.MkdirAll(target, 0o755)
		case info.Mode()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			if err := os.Symlink(link, target); !errors.Is(err, fs.ErrExist) {
				return err
			}
			return nil
		case info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0:
			if *budget -= info.Size(); *budget < 0 {
				return fmt.Errorf("more than %d bytes", maxCopied)
			}
			return copyFile(path, target)
		}
		return nil
	})
}

func isRefused(name string) bool {
	for _, pattern := range refused {
		if ok, _ := filepath.Match(pattern, strings.ToLower(name)); ok {
			return true
		}
	}
	return false
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
