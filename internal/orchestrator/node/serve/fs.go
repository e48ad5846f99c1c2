package serve

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/wire"
)

// Where a path of an allocation leads.
//
// The allocation's directory is the node's own: alloc/logs, and below each task's name what the node has written for it. It is read through an os.Root, so
// that no link in it leads out. A running task with a file system of its own shows that below its name instead, read as the inside sees it and confined
// to its root by descriptors (driver.Files).
type place struct {
	rel   string       // below the allocation's directory; "." is that itself
	files driver.Files // nil = the allocation's directory
	path  string       // within files
}

// locate cleans a path and finds out where it leads. A path that climbs out is refused, not cut off: whoever asks for it wants something else.
func (h *Handler) locate(ctx context.Context, allocID, p string) (place, error) {
	names, err := h.node.Tasks(allocID)
	if err != nil {
		return place{}, err
	}
	depth := 0
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if depth < 0 {
			return place{}, fault.New(fault.Invalid, "Path escapes the alloc directory")
		}
	}
	if strings.ContainsRune(p, 0) {
		return place{}, fault.New(fault.Invalid, "the path holds a NUL")
	}
	rel := cmp.Or(strings.TrimPrefix(path.Clean("/"+p), "/"), ".")
	first, rest, _ := strings.Cut(rel, "/")
	if !slices.Contains(names, first) {
		return place{rel: rel}, nil
	}
	if inside, _, _ := strings.Cut(rest, "/"); inside == "secrets" {
		return place{}, fault.New(fault.Forbidden, "Reading secret file prohibited: %s", rel)
	}
	if t, err := h.node.Task(ctx, allocID, first); err == nil {
		if f := t.Files(); f != nil {
			return place{rel: rel, files: f, path: "/" + rest}, nil
		}
	}
	return place{rel: rel}, nil
}

// root opens an allocation's directory.
func (h *Handler) root(allocID string) (*os.Root, error) {
	dir, err := h.node.Directory(allocID)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the allocation's directory cannot be opened")
	}
	return r, nil
}

// fileError is the answer for a path that is missing or cannot be read.
func fileError(err error, rel string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, driver.ErrNotFound), errors.Is(err, driver.ErrTaskGone):
		return fault.Wrap(fault.NotFound, err, "file or directory not found: %s", rel)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, driver.ErrPermission):
		return fault.Wrap(fault.Forbidden, err, "permission denied: %s", rel)
	case errors.Is(err, driver.ErrNotRegular):
		return fault.Wrap(fault.Invalid, err, "not a regular file: %s", rel)
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok { // os.Root refuses links that lead out
		return fault.Wrap(fault.Invalid, err, "cannot be read: %s", rel)
	}
	return err
}

type fsPath struct {
	ID   string `path:"id"`
	Path string `query:"path"`
}

func (h *Handler) list(ctx context.Context, _ auth.Identity, r fsPath) ([]*wire.AllocFileInfo, error) {
	at, err := h.locate(ctx, r.ID, r.Path)
	if err != nil {
		return nil, err
	}
	out := []*wire.AllocFileInfo{}
	if at.files != nil {
		for i, err := range at.files.List(ctx, at.path, false, "") {
			if err != nil {
				return nil, fileError(err, at.rel)
			}
			if i.Name != "." && i.Name != ".." {
				out = append(out, infoInside(i))
			}
		}
		return out, nil
	}
	root, err := h.root(r.ID)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), at.rel)
	if err != nil {
		return nil, fileError(err, at.rel)
	}
	for _, e := range entries {
		if i, err := e.Info(); err == nil { // it may have gone meanwhile
			out = append(out, infoOf(i, typeByName(i)))
		}
	}
	return out, nil
}

func (h *Handler) stat(ctx context.Context, _ auth.Identity, r fsPath) (*wire.AllocFileInfo, error) {
	at, err := h.locate(ctx, r.ID, r.Path)
	if err != nil {
		return nil, err
	}
	if at.files != nil {
		return statInside(ctx, at)
	}
	root, err := h.root(r.ID)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	i, err := root.Stat(at.rel)
	if err != nil {
		return nil, fileError(err, at.rel)
	}
	kind := typeByName(i)
	if i.Mode().IsRegular() {
		if f, err := root.Open(at.rel); err == nil {
			head := make([]byte, 512)
			n, _ := io.ReadFull(f, head)
			_ = f.Close()
			kind = http.DetectContentType(head[:n])
		}
	}
	return infoOf(i, kind), nil
}

// statInside finds an entry in the listing of its directory.
func statInside(ctx context.Context, at place) (*wire.AllocFileInfo, error) {
	dir, name := path.Split(path.Clean(at.path))
	if name == "" {
		return &wire.AllocFileInfo{Name: path.Base(at.rel), IsDir: true, FileMode: "drwxr-xr-x", ContentType: typeDirectory}, nil
	}
	for i, err := range at.files.List(ctx, dir, false, "") {
		if err != nil {
			return nil, fileError(err, at.rel)
		}
		if path.Base(i.Name) == name {
			return infoInside(i), nil
		}
	}
	return nil, fileError(fs.ErrNotExist, at.rel)
}

const typeDirectory, typeBinary = "application/octet-stream", "application/octet-stream"

func typeByName(i fs.FileInfo) string {
	if i.IsDir() {
		return typeDirectory
	}
	return cmp.Or(mime.TypeByExtension(path.Ext(i.Name())), typeBinary)
}

func infoOf(i fs.FileInfo, contentType string) *wire.AllocFileInfo {
	return &wire.AllocFileInfo{Name: i.Name(), IsDir: i.IsDir(), Size: i.Size(), FileMode: i.Mode().String(), ModTime: i.ModTime(), ContentType: contentType}
}

func infoInside(i driver.FileInfo) *wire.AllocFileInfo {
	out := &wire.AllocFileInfo{Name: path.Base(i.Name), IsDir: i.Type == "d", Size: i.Size, FileMode: i.Type + i.Permissions, ModTime: time.Unix(i.ModTime, 0).UTC()}
	out.ContentType = typeDirectory
	if !out.IsDir {
		out.ContentType = cmp.Or(mime.TypeByExtension(path.Ext(out.Name)), typeBinary)
	}
	return out
}

// open opens a regular file at an offset.
func (h *Handler) open(ctx context.Context, allocID, p string, offset int64) (io.ReadCloser, error) {
	at, err := h.locate(ctx, allocID, p)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fault.New(fault.Invalid, "the offset is negative")
	}
	if at.files != nil {
		f, _, err := openInside(ctx, at)
		if err != nil {
			return nil, err
		}
		if err := skip(f, offset); err != nil {
			_ = f.Close()
			return nil, fileError(err, at.rel)
		}
		return f, nil
	}
	root, err := h.root(allocID)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := openRegular(root, at.rel)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fileError(err, at.rel)
	}
	return f, nil
}

// openRegular opens a file below root. What is not regular, such as a FIFO, could block whoever opens it.
func openRegular(root *os.Root, rel string) (*os.File, error) {
	i, err := root.Stat(rel)
	if err == nil && !i.Mode().IsRegular() {
		err = driver.ErrNotRegular
	}
	var f *os.File
	if err == nil {
		f, err = root.OpenFile(rel, os.O_RDONLY|nonblock, 0) // it may have been replaced by a FIFO meanwhile
	}
	return f, fileError(err, rel)
}

// cat answers with the whole file. Nomad answers 200 also for a file that is missing, with the error as its text; nobody can tell that from a file.
func (h *Handler) cat(w http.ResponseWriter, r *http.Request, _ auth.Identity, req fsPath) error {
	return h.send(w, r, req.ID, req.Path, 0, 0)
}

type readAt struct {
	fsPath
	Offset int64 `query:"offset"`
	Limit  int64 `query:"limit"`
}

func (h *Handler) readAt(w http.ResponseWriter, r *http.Request, _ auth.Identity, req readAt) error {
	return h.send(w, r, req.ID, req.Path, req.Offset, req.Limit)
}

// send writes a file from offset on, at most limit bytes unless that is 0 or less.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, allocID, p string, offset, limit int64) error {
	f, err := h.open(r.Context(), allocID, p, offset)
	if err != nil {
		return err
	}
	defer f.Close()
	var from io.Reader = f
	if limit > 0 {
		from = io.LimitReader(f, limit)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	_, err = io.Copy(w, from)
	return err
}
