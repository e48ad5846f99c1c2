package image

import (
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"rockpool/internal/fault"
)

// Host is the reference of the node's own system.
const Host = "host"

type kind uint8

const (
	kindHost kind = iota
	kindRegistry
	kindLayout
	kindArchive
	kindDir
)

// schemes are the prefixes of references to what lies on the node.
var schemes = map[string]kind{"oci-layout:": kindLayout, "docker-archive:": kindArchive, "dir:": kindDir}

// maxReference bounds a reference, in bytes.
const maxReference = 1024

// Reference names an image in one of the forms that [Parse] knows.
type Reference struct {
	text string // as it was given
	kind kind
	name name.Reference // of a registry
	path string         // of everything else: absolute and clean
	tag  string         // which image of a layout or an archive; "" = the only one
}

// Parse reads a reference:
//
//	host                                 the node's own system
//	[registry/]repository[:tag][@digest] an image in a registry, docker.io and "latest" when not said
//	oci-layout:/path[:tag]               a directory in the layout of the OCI image specification
//	docker-archive:/path[:repository:tag] a tar archive that `docker save` wrote
//	dir:/path                            a root file system, used in place
//
// The error is a fault of kind Invalid. That a path is allowed is checked where it is opened.
func Parse(text string) (Reference, error) {
	r := Reference{text: text}
	if text == "" || len(text) > maxReference || strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f || c > 0xff }) {
		return r, fault.New(fault.Invalid, "image reference %.80q: 1 to %d printable characters without a space are wanted", text, maxReference)
	}
	if text == Host {
		return r, nil
	}
	for prefix, kind := range schemes {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			return parseLocal(r, kind, prefix, rest)
		}
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		return r, fault.New(fault.Invalid, "image reference %q: the scheme %q is not known; an image is %q, registry/repository:tag, oci-layout:/path, docker-archive:/path or dir:/path",
			text, scheme, Host)
	}
	parsed, err := name.ParseReference(text)
	if err != nil {
		return r, fault.Wrap(fault.Invalid, err, "image reference %q: %s", text, oneLine(err))
	}
	r.kind, r.name = kindRegistry, parsed
	return r, nil
}

func parseLocal(r Reference, k kind, prefix, rest string) (Reference, error) {
	r.kind, r.path = k, rest
	if k != kindDir {
		// A tag follows the first colon after the last slash of the path; a repository in a tag has slashes of its own, so that an archive's
		// path itself may not have a colon.
		if i := strings.IndexByte(rest, ':'); i >= 0 {
			r.path, r.tag = rest[:i], rest[i+1:]
			if r.tag == "" {
				return r, fault.New(fault.Invalid, "image reference %q: the tag after the colon is empty", r.text)
			}
		}
	}
	if !filepath.IsAbs(r.path) || filepath.Clean(r.path) != strings.TrimSuffix(r.path, "/") {
		return r, fault.New(fault.Invalid, "image reference %q: an absolute path without . and .. is wanted after %s", r.text, prefix)
	}
	r.path = filepath.Clean(r.path)
	return r, nil
}

// String is the reference as it was given.
func (r Reference) String() string { return r.text }

// key is what the reference is known under in the store: the same for all ways to write it. A digest names its content wherever it came from.
func (r Reference) key() string {
	if r.kind != kindRegistry {
		return r.text
	}
	if d, ok := r.name.(name.Digest); ok {
		return d.DigestStr()
	}
	return r.name.Name()
}

// pinned is the reference to exactly the image that a digest names.
func (r Reference) pinned(digest string) string {
	if r.kind != kindRegistry || digest == "" {
		return r.text
	}
	return r.name.Context().Digest(digest).Name()
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
