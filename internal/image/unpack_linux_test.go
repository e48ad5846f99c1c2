package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root: files of a layer belong to many users")
	}
}

// tarOf is an archive of headers; the content of a regular file is its Linkname.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reg(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: content}
}
func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}
func symbolic(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func same(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// unpacked unpacks into a directory beside which nothing may change.
func unpacked(t testing.TB, archive []byte, limits Limits) (dir string, err error) {
	t.Helper()
	needRoot(t)
	outside := t.TempDir()
	dir = filepath.Join(outside, "layer")
	if err := firstOf(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(outside, "canary"), []byte("alive"), 0o600),
		os.Mkdir(filepath.Join(outside, "aviary"), 0o700), os.WriteFile(filepath.Join(outside, "aviary/canary"), []byte("alive"), 0o600)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, outside)
	_, err = unpack(t.Context(), dir, bytes.NewReader(archive), &budget{limits: limits.withDefaults()})
	if after := listing(t, outside); after != before {
		t.Errorf("what is outside the layer changed from\n%s\nto\n%s", before, after)
	}
	return dir, err
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// listing describes everything beside the layer.
func listing(t testing.TB, outside string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(outside, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(outside, "layer") {
			return filepath.SkipDir
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err != nil {
			return err
		}
		text := []byte(nil)
		if d.Type().IsRegular() {
			text, err = os.ReadFile(path)
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d %q\n", path, s.Mode, s.Uid, s.Gid, s.Nlink, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHostileMembersAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		entries []tar.Header
		says    string
	}{
		"a name that climbs":              {[]tar.Header{reg("../canary", "x")}, "leads out"},
		"a name that climbs later":        {[]tar.Header{folder("a"), reg("a/../../canary", "x")}, "leads out"},
		"a hard link to the outside":      {[]tar.Header{same("h", "../canary")}, "leads out"},
		"a hard link to a file outside":   {[]tar.Header{same("h", "/etc/passwd")}, "does not have"},
		"a hard link through a link":      {[]tar.Header{symbolic("up", "../aviary"), same("h", "up/canary")}, "does not have"},
		"a hard link to a directory":      {[]tar.Header{folder("d"), same("h", "d")}, "no file of this layer"},
		"a hard link to the root":         {[]tar.Header{same("h", ".")}, "no file of this layer"},
		"a hard link to a deletion":       {[]tar.Header{reg(".wh.gone", ""), same("h", "gone")}, "no file of this layer"},
		"a deletion of its directory":     {[]tar.Header{folder("d"), reg("d/.wh..", "")}, "deletes its own"},
		"a deletion of the parent":        {[]tar.Header{folder("d"), reg("d/.wh...", "")}, "deletes its own"},
		"a deletion without a name":       {[]tar.Header{reg(".wh.", "")}, "deletes its own"},
		"a file in place of the root":     {[]tar.Header{reg("./", "x")}, "directory"},
		"a file through a link to a file": {[]tar.Header{reg("f", "x"), symbolic("l", "f"), reg("l/y", "x")}, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.entries[0].Name == "./" {
				c.entries[0].Typeflag, c.entries[0].Linkname = tar.TypeSymlink, "x"
			}
			_, err := unpacked(t, tarOf(t, c.entries...), Limits{})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func TestHostileMembersAreHarmless(t *testing.T) {
	device := tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}
	forged := tar.Header{Typeflag: tar.TypeChar, Name: "forged", Mode: 0o666}
	disk := tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o666, Devmajor: 8}
	marked := folder("marked")
	marked.PAXRecords = map[string]string{
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y",
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.user.mime": "text",
	}
	powerful := reg("powerful", "x")
	powerful.PAXRecords, powerful.Mode = marked.PAXRecords, 0o4755
	far := reg("far", "x")
	far.Uid, far.Gid = 70000, 1<<30
	if _, err := unpacked(t, tarOf(t, symbolic("abs", "/etc"), reg("abs/passwd", "inside")), Limits{}); err == nil {
		t.Error("a link to what the layer does not have leads somewhere")
	}
	dir, err := unpacked(t, tarOf(t,
		folder("etc"), folder("aviary"), symbolic("abs", "/etc"), reg("abs/passwd", "inside"), symbolic("up", "../../aviary"), reg("up/new", "inside"),
		device, forged, disk, marked, powerful, far, reg("/rooted", "x"),
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/passwd", "aviary/new", "rooted"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"null", "forged", "sda"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s was made", name)
		}
	}
	for _, name := range []string{"marked", "powerful"} {
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(dir, name), list)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Trim(string(list[:n]), "\x00"); got != "user.mime" && got != "" { // a file system may have no user attributes
			t.Errorf("%s has the attributes %q", name, got)
		}
	}
	var s unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "far"), &s); err != nil || s.Uid != nobody || s.Gid != nobody {
		t.Errorf("ids out of range became %d:%d", s.Uid, s.Gid)
	}
	if err := unix.Lstat(filepath.Join(dir, "powerful"), &s); err != nil || s.Mode&0o7777 != 0o4755 {
		t.Errorf("mode %o", s.Mode)
	}
}

func TestALayerIsWhatItsArchiveSays(t *testing.T) {
	owned := reg("home/ada/hello", "hello")
	owned.Uid, owned.Gid, owned.Mode, owned.ModTime = 1000, 1001, 0o640, time.Unix(1_000_000_000, 0)
	home := folder("home/ada")
	home.Uid, home.Gid, home.Mode, home.ModTime = 1000, 1001, 0o700, time.Unix(900_000_000, 0)
	lnk := symbolic("home/ada/l", "/nowhere")
	lnk.Uid = 1000
	root := folder("./")
	root.Mode = 0o755
	dir, err := unpacked(t, tarOf(t, root, home, owned, same("home/ada/again", "home/ada/hello"), lnk,
		tar.Header{Typeflag: tar.TypeFifo, Name: "home/ada/pipe", Mode: 0o600},
		reg("twice", "first"), reg("twice", "second"), folder("becomes"), reg("becomes/a", "x"), reg("becomes", "a file"),
		reg("was", "x"), folder("was"), same("home/ada/again", "home/ada/again")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) (s unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), &s); err != nil {
			t.Error(err)
		}
		return s
	}
	if s := stat("home/ada/hello"); s.Uid != 1000 || s.Gid != 1001 || s.Mode&0o777 != 0o640 || s.Mtim.Sec != 1_000_000_000 || s.Nlink != 2 {
		t.Errorf("%+v", s)
	}
	if s := stat("home/ada"); s.Uid != 1000 || s.Mode&0o777 != 0o700 || s.Mtim.Sec != 900_000_000 {
		t.Errorf("%+v", s)
	}
	if stat("home/ada/again").Ino != stat("home/ada/hello").Ino || stat("home/ada/l").Uid != 1000 {
		t.Error("a hard link is a copy, or a link lost its owner")
	}
	if stat("home/ada/pipe").Mode&unix.S_IFMT != unix.S_IFIFO || stat("was").Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Error("types")
	}
	for name, want := range map[string]string{"twice": "second", "becomes": "a file"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); string(text) != want {
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
}

func TestWhiteouts(t *testing.T) {
	dir, err := unpacked(t, tarOf(t, reg("etc/.wh.shadow", ""), folder("etc/opaque"), reg("etc/opaque/.wh..wh..opq", ""), reg(".wh..wh.plnk", ""),
		reg(".wh.again", ""), folder("again"), folder("before"), reg(".wh.before", ""), reg("kept", "x"), reg(".wh.kept", ""),
		reg(".wh.implied", ""), reg("implied/file", "x")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var s unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "etc/shadow"), &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFCHR || s.Rdev != 0 {
		t.Errorf("a deletion is %o %d %v", s.Mode, s.Rdev, err)
	}
	for _, name := range []string{"etc/opaque", "again", "before", "implied"} {
		if !opaqueRoot(filepath.Join(dir, name)) {
			t.Errorf("%s is not opaque", name)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "kept")); string(text) != "x" {
		t.Errorf("a deletion took what the layer itself has: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".wh*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestBoundsOfALayer(t *testing.T) {
	sparse := "a" + strings.Repeat("\x00", 1<<20)
	many := make([]tar.Header, 100)
	for i := range many {
		many[i] = reg(fmt.Sprint(i), "")
	}
	long := make([]tar.Header, 20_000) // one directory, again and again: gzip makes five bytes of each
	for i := range long {
		long[i] = folder(strings.Repeat(strings.Repeat("d", 199)+"/", 20)) // few parts: each is looked up
	}
	for name, c := range map[string]struct {
		entries []tar.Header
		limits  Limits
		says    string
	}{
		"long names":  {long, Limits{}, "the names of its directories"},
		"bytes":       {[]tar.Header{reg("f", sparse)}, Limits{Bytes: 1 << 19}, "bytes unpacked"},
		"entries":     {many, Limits{Entries: 50}, "entries"},
		"directories": {[]tar.Header{folder(strings.Repeat("d/", 100))}, Limits{Entries: 50}, "entries"},
	} {
		if _, err := unpacked(t, tarOf(t, c.entries...), c.limits); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// repeated is one piece of data again and again.
type repeated struct {
	piece []byte
	at    int64
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.piece[int(r.at)%len(r.piece):])
	r.at += int64(n)
	return n, nil
}

// Headers that extend the next one can follow each other for ever, and none of them is an entry.
func TestHeadersWithoutAnEntryAreBounded(t *testing.T) {
	needRoot(t)
	one := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 200), PAXRecords: map[string]string{"user.x": "y"}})
	const extended = 2 * 512 // a header of its own, and its records
	if one[156] != tar.TypeXHeader || one[extended+156] != tar.TypeReg {
		t.Fatalf("the archive begins with %q and goes on with %q", one[156], one[extended+156])
	}
	const most = 256 << 20
	left := &budget{limits: Limits{Bytes: 1 << 20, Entries: 100}}
	endless := &repeated{piece: one[:extended]}
	b := blob{open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(endless, most)), nil }}
	_, err := b.fill(t.Context(), func() (string, error) { return t.TempDir(), nil }, left, func(int64) {})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "in its archives") || endless.at >= most {
		t.Errorf("after %d bytes: %v", endless.at, err)
	}
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(tarOf(f, reg("../canary", "x"), same("h", "../canary")))
	f.Add(tarOf(f, symbolic("up", "../aviary"), reg("up/canary", "x"), same("h", "up/canary")))
	f.Add(tarOf(f, folder("a"), reg("a/.wh..wh..opq", ""), reg(".wh.a", ""), reg(".wh...", "")))
	f.Add(tarOf(f, folder("a"), symbolic("a/b", "/"), reg("a/b/canary", "x"), folder("a")))
	f.Add([]byte("not an archive"))
	f.Fuzz(func(t *testing.T, archive []byte) {
		dir, err := unpacked(t, archive, Limits{Bytes: 1 << 20, Entries: 200})
		if err != nil {
			return
		}
		// What was taken can be read again, and no device but a deletion is in it.
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type()&fs.ModeDevice != 0 {
				var s unix.Stat_t
				if unix.Lstat(path, &s) == nil && s.Rdev != 0 {
					t.Errorf("%s is the device %d", path, s.Rdev)
				}
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, text := range []string{"host", "debian:12", "dir:/a", "dir:/a/../b", "oci-layout:/a:b", "docker-archive:/a.tar:x/y:1", "file:///etc/passwd",
		"http://169.254.169.254/x", "127.0.0.1:5000/x@sha256:" + strings.Repeat("a", 64), "a\x00b", "[::1]/x", "../../x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if r.kind != kindHost && r.kind != kindRegistry && (!filepath.IsAbs(r.path) || filepath.Clean(r.path) != r.path) {
			t.Errorf("%q has the path %q", text, r.path)
		}
		if r.kind == kindRegistry {
			if again, err := Parse(r.name.Name()); err != nil || again.key() != r.key() {
				t.Errorf("%q is %q, which is %q: %v", text, r.key(), again.key(), err)
			}
		}
	})
}
