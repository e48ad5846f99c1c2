package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"rockpool/internal/fault"
)

// allowedPath is the real path of what a reference names on this node. Whoever may ask for an image may not thereby read the node's files: the path, links
// resolved, has to lie below a directory that the operator gave to images. What lies elsewhere and what does not exist are answered alike.
func (s *Store) allowedPath(given string) (string, error) {
	refusal := fault.New(fault.Invalid, "%s is not below a directory for images on this node (%s): put it there, or name its directory in orchestrator.images.localdirs",
		given, strings.Join(s.cfg.LocalDirs, ", "))
	found, err := filepath.EvalSymlinks(given)
	if err != nil {
		found = given
	}
	for _, dir := range s.cfg.LocalDirs {
		real, evalErr := filepath.EvalSymlinks(dir)
		if evalErr != nil {
			continue
		}
		if below(found, real) || err != nil && below(found, dir) {
			if err != nil {
				return "", fault.Wrap(fault.NotFound, err, "%s does not exist on this node", given)
			}
			return found, nil
		}
	}
	return "", refusal
}

func below(p, dir string) bool {
	rel, err := filepath.Rel(dir, p)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}

// stamp changes when a file does.
func stamp(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, err, "%s cannot be read", file)
	}
	if !info.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "%s is not a regular file", file)
	}
	return fmt.Sprintf("%d/%d", info.ModTime().UnixNano(), info.Size()), nil
}

// layoutFile is what lists the images of a layout.
const layoutFile = "index.json"

// layoutTag is the annotation that names an image in it.
const layoutTag = "org.opencontainers.image.ref.name"

// layout reads an image from a directory. Links that lead out of it are not followed.
func layout(ctx context.Context, dir, tag string) (_ *plan, closeAll func() error, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fault.Wrap(fault.NotFound, err, "%s cannot be read", dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	open := func(d v1.Descriptor) blob {
		return blob{open: func(context.Context) (io.ReadCloser, error) {
			if err := checkDigest(d.Digest); err != nil {
				return nil, err
			}
			return openRegular(root, "blobs/sha256/"+d.Digest.Hex)
		}}
	}
	read := func(ctx context.Context, d v1.Descriptor) ([]byte, error) {
		text, err := readSmall(ctx, open(d), d)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		return text, nil
	}
	f, err := openRegular(root, layoutFile)
	if err != nil {
		return nil, nil, err
	}
	index, err := v1.ParseIndexManifest(io.LimitReader(f, maxManifest))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "%s of the layout cannot be read", layoutFile)
	}
	top, err := tagged(index, tag)
	if err != nil {
		return nil, nil, err
	}
	text, err := read(ctx, top)
	if err != nil {
		return nil, nil, err
	}
	m, err := choose(ctx, text, top.MediaType, read)
	if err != nil {
		return nil, nil, err
	}
	p, err := planOf(ctx, m, top.Digest.String(), dir, open)
	return p, root.Close, err
}

// tagged finds the image of a layout that a tag means; without one, the only one.
func tagged(index *v1.IndexManifest, tag string) (v1.Descriptor, error) {
	var tags []string
	for _, d := range index.Manifests {
		if t := d.Annotations[layoutTag]; t != "" {
			tags = append(tags, t)
			if t == tag {
				return d, nil
			}
		}
	}
	switch {
	case tag != "":
		return v1.Descriptor{}, fault.New(fault.NotFound, "the layout has no image %q; it has %s", tag, strings.Join(tags, ", "))
	case len(index.Manifests) == 1:
		return index.Manifests[0], nil
	}
	return v1.Descriptor{}, fault.New(fault.Invalid, "the layout has %d images: say which one with :tag (%s)", len(index.Manifests), strings.Join(tags, ", "))
}

func openRegular(root *os.Root, file string) (*os.File, error) {
	info, err := root.Stat(file)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var f *os.File
	if err == nil {
		f, err = root.Open(file)
	}
	return f, fault.Wrap(fault.Invalid, err, "%s of the layout cannot be read", file)
}

// member is where an entry of an archive lies in it.
type member struct {
	offset, size int64
	link         string // of an entry that stands for another one
}

// maxMembers bounds the entries of an archive of `docker save`.
const maxMembers = 100_000

// archive reads an image from what `docker save` wrote. It is read through once; after that each entry is found at its place.
func archive(_ context.Context, file, tag string) (_ *plan, closeAll func() error, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, fault.Wrap(fault.NotFound, err, "%s cannot be read", file)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	members, err := membersOf(f)
	if err != nil {
		return nil, nil, err
	}
	var listed []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	text, err := members.small(f, "manifest.json")
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(text, &listed); err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "manifest.json of the archive cannot be read")
	}
	var all []string
	chosen := -1
	for i, image := range listed {
		all = append(all, image.RepoTags...)
		if slices.ContainsFunc(image.RepoTags, func(t string) bool { return tag != "" && sameName(t, tag) }) {
			chosen = i
		}
	}
	switch {
	case chosen >= 0:
	case tag != "":
		return nil, nil, fault.New(fault.NotFound, "the archive has no image %q; it has %s", tag, strings.Join(all, ", "))
	case len(listed) != 1:
		return nil, nil, fault.New(fault.Invalid, "the archive has %d images: say which one with :repository:tag (%s)", len(listed), strings.Join(all, ", "))
	default:
		chosen = 0
	}
	image := listed[chosen]
	if text, err = members.small(f, image.Config); err != nil {
		return nil, nil, err
	}
	c, root, err := parseConfig(text)
	if err != nil {
		return nil, nil, err
	}
	if len(image.Layers) != len(c.RootFS.DiffIDs) {
		return nil, nil, fault.New(fault.Invalid, "the archive has %d layers and its configuration %d", len(image.Layers), len(c.RootFS.DiffIDs))
	}
	id, _, err := v1.SHA256(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	p := &plan{digest: id.String(), id: id.String(), origin: file, root: root}
	for i, entry := range image.Layers {
		m, err := members.find(entry)
		if err != nil {
			return nil, nil, err
		}
		p.layers = append(p.layers, blob{diffID: c.RootFS.DiffIDs[i], size: m.size, open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(f, m.offset, m.size)), nil
		}})
	}
	p.layers, err = distinct(p.layers)
	return p, f.Close, err
}

func sameName(a, b string) bool {
	x, errA := name.ParseReference(a)
	y, errB := name.ParseReference(b)
	return errA == nil && errB == nil && x.Name() == y.Name()
}

type members map[string]member

func membersOf(f *os.File) (members, error) {
	all := members{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the archive cannot be read: an uncompressed one of docker save is wanted")
		}
		if len(all) >= maxMembers {
			return nil, fault.New(fault.Invalid, "the archive has more than %d entries", maxMembers)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			all[path.Clean(h.Name)] = member{offset: at, size: h.Size}
		case tar.TypeLink:
			all[path.Clean(h.Name)] = member{link: path.Clean(h.Linkname)}
		case tar.TypeSymlink:
			all[path.Clean(h.Name)] = member{link: path.Join(path.Dir(path.Clean(h.Name)), h.Linkname)}
		}
	}
}

// find follows the links of older archives, which name one layer twice.
func (all members) find(entry string) (member, error) {
	at := path.Clean(entry)
	for range 8 {
		m, ok := all[at]
		if !ok {
			break
		}
		if m.link == "" {
			return m, nil
		}
		at = m.link
	}
	return member{}, fault.New(fault.Invalid, "the archive has no entry %.200q", entry)
}

func (all members) small(f io.ReaderAt, entry string) ([]byte, error) {
	m, err := all.find(entry)
	if err != nil {
		return nil, err
	}
	if m.size > maxManifest {
		return nil, fault.New(fault.Invalid, "entry %.200q of the archive has %d bytes, at most %d are taken", entry, m.size, maxManifest)
	}
	return io.ReadAll(io.NewSectionReader(f, m.offset, m.size))
}
