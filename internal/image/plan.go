package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rockpool/internal/fault"
	"rockpool/internal/sandbox"
)

const (
	maxManifest = 4 << 20 // bytes of a manifest, an index or a configuration
	maxValues   = 50_000  // in one of these: an empty one takes two bytes to send, and hundreds here
	maxFollowed = 8       // manifests that are read to find the one for this node
	maxLayers   = 100     // different ones: what an overlay of a sandbox takes
	maxEnv      = 1000
	maxError    = 1500 // bytes of what is said about a failure: it goes into events and logs
)

// plan is an image as a source describes it, before its layers are there.
type plan struct {
	digest string // of what the reference names; "" = it has none
	id     string // digest of the configuration
	origin string // where its layers come from
	root   sandbox.Root
	layers []blob // bottom first, each once
}

// bytes is the size of the layers as they are transferred.
func (p *plan) bytes() (n int64) {
	for _, l := range p.layers {
		n += l.size
	}
	return n
}

// manifests reads a manifest or an index by its descriptor.
type manifests func(ctx context.Context, d v1.Descriptor) ([]byte, error)

// choose follows indexes to the manifest for this node's platform. text is the document that the reference names.
func choose(ctx context.Context, text []byte, mediaType types.MediaType, read manifests) (*v1.Manifest, error) {
	left := maxFollowed
	return follow(ctx, text, mediaType, read, &left)
}

func follow(ctx context.Context, text []byte, mediaType types.MediaType, read manifests, left *int) (*v1.Manifest, error) {
	if *left--; *left < 0 {
		return nil, fault.New(fault.Invalid, "its lists of manifests lead to more than %d others, or in a circle", maxFollowed)
	}
	if err := checkValues(text); err != nil {
		return nil, err
	}
	if mediaType == types.DockerManifestSchema1 || mediaType == types.DockerManifestSchema1Signed {
		return nil, fault.New(fault.Invalid, "its manifest has the format of 2014 (schema 1), which is not supported: push it again with a current tool")
	}
	if !isIndex(text, mediaType) {
		m, err := v1.ParseManifest(bytes.NewReader(text))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "its manifest cannot be read")
		}
		return m, nil
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(text))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "its list of manifests cannot be read")
	}
	var offered []string
	candidates := slices.DeleteFunc(slices.Clone(index.Manifests), func(d v1.Descriptor) bool {
		if d.Platform == nil {
			return false
		}
		offered = append(offered, d.Platform.OS+"/"+d.Platform.Architecture)
		return !fits(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
	})
	// What names its platform goes before what might be anything.
	slices.SortStableFunc(candidates, func(a, b v1.Descriptor) int { return rank(a) - rank(b) })
	for _, d := range candidates {
		if !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
			continue
		}
		text, err := read(ctx, d)
		if err != nil {
			return nil, err
		}
		return follow(ctx, text, d.MediaType, read, left)
	}
	return nil, fault.New(fault.Invalid, "it is not made for this node, which is linux/%s; it offers %s", runtime.GOARCH, strings.Join(offered, ", "))
}

// checkValues bounds what a document becomes in memory before it is parsed: a value follows another one after a comma.
func checkValues(text []byte) error {
	if bytes.Count(text, []byte(",")) > maxValues {
		return tooManyValues()
	}
	return nil
}

func tooManyValues() error {
	return fault.New(fault.Invalid, "a document of it has more than %d commas, which no image needs", maxValues)
}

func rank(d v1.Descriptor) int {
	if d.Platform == nil {
		return 1
	}
	return 0
}

// isIndex tells a list from a manifest by what is in it where the media type does not say.
func isIndex(text []byte, mediaType types.MediaType) bool {
	if mediaType.IsIndex() || mediaType.IsImage() {
		return mediaType.IsIndex()
	}
	var probe struct {
		MediaType types.MediaType   `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(text, &probe) == nil && (probe.MediaType.IsIndex() || probe.MediaType == "" && len(probe.Manifests) > 0)
}

func fits(os, architecture, variant string) bool {
	if os != "" && os != "linux" || architecture != "" && architecture != runtime.GOARCH {
		return false
	}
	// The first level of each architecture runs everywhere; of arm64 that is called v8.
	return variant == "" || variant == "v8" || variant == "v1"
}

// blobs opens a blob by its descriptor.
type blobs func(d v1.Descriptor) blob

// layersOf checks what a manifest and its configuration say of each other.
func layersOf(m *v1.Manifest, config *v1.ConfigFile, open blobs) ([]blob, error) {
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return nil, fault.New(fault.Invalid, "its manifest has %d layers and its configuration %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	var layers []blob
	for i, d := range m.Layers {
		switch {
		case len(d.URLs) > 0 || !d.MediaType.IsDistributable() && d.MediaType.IsLayer():
			return nil, fault.New(fault.Invalid, "layer %s is a foreign one, which would have to be fetched from elsewhere: refused", d.Digest)
		case !d.MediaType.IsLayer() && !strings.Contains(string(d.MediaType), ".layer.") && !strings.Contains(string(d.MediaType), ".rootfs."):
			return nil, fault.New(fault.Invalid, "layer %s has the media type %.100q: this is no image that can be run", d.Digest, d.MediaType)
		case d.Size < 0:
			return nil, fault.New(fault.Invalid, "layer %s has a negative size", d.Digest)
		}
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
		l := open(d)
		l.diffID, l.digest, l.size = config.RootFS.DiffIDs[i], d.Digest, d.Size
		layers = append(layers, l)
	}
	return distinct(layers)
}

// distinct keeps the topmost of equal layers: it does again what the lower one did. An overlay refuses one directory twice.
func distinct(layers []blob) ([]blob, error) {
	seen := map[v1.Hash]bool{}
	var kept []blob
	for _, l := range slices.Backward(layers) {
		if err := checkDigest(l.diffID); err != nil {
			return nil, err
		}
		if !seen[l.diffID] {
			kept = append(kept, l)
		}
		seen[l.diffID] = true
	}
	slices.Reverse(kept)
	switch {
	case len(kept) == 0:
		return nil, fault.New(fault.Invalid, "it has no layers")
	case len(kept) > maxLayers:
		return nil, fault.New(fault.Invalid, "it has %d layers, and at most %d can be stacked: build it with fewer steps, or squash it", len(kept), maxLayers)
	}
	return kept, nil
}

// checkDigest lets only what can be verified name a file.
func checkDigest(h v1.Hash) error {
	if h.Algorithm != "sha256" || len(h.Hex) != 64 || strings.Trim(h.Hex, "0123456789abcdef") != "" {
		return fault.New(fault.Invalid, "the digest %.100q is not a sha256", h.String())
	}
	return nil
}

// parseConfig reads an image's configuration and turns it into what a sandbox is told. What runs in the image's own way, ENTRYPOINT and CMD, is
// left out.
func parseConfig(text []byte) (*v1.ConfigFile, sandbox.Root, error) {
	if err := checkValues(text); err != nil {
		return nil, sandbox.Root{}, err
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(text))
	if err != nil {
		return nil, sandbox.Root{}, fault.Wrap(fault.Invalid, err, "its configuration cannot be read")
	}
	if !fits(c.OS, c.Architecture, "") {
		return nil, sandbox.Root{}, fault.New(fault.Invalid, "it is made for %s/%s, and this node is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	root := sandbox.Root{Env: slices.Clone(c.Config.Env), User: c.Config.User}
	if c.Config.WorkingDir != "" {
		root.WorkDir = path.Join("/", c.Config.WorkingDir)
	}
	return c, root, checkRoot(&root)
}

func checkRoot(root *sandbox.Root) error {
	for _, text := range append([]string{root.WorkDir, root.User}, root.Env...) {
		if strings.ContainsRune(text, 0) {
			return fault.New(fault.Invalid, "its configuration has a zero byte in %.80q", text)
		}
	}
	if len(root.Env) > maxEnv || len(root.WorkDir) >= 4096 || len(root.User) > 256 {
		return fault.New(fault.Invalid, "its configuration is too large: at most %d variables, 4095 bytes of WORKDIR and 256 of USER", maxEnv)
	}
	root.Env = slices.DeleteFunc(root.Env, func(v string) bool { return strings.IndexByte(v, '=') <= 0 })
	if !slices.ContainsFunc(root.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		root.Env = append(root.Env, "PATH="+searchPath)
	}
	return nil
}

// about says which image an error is about, in words for whoever asked for it. Its kind stays.
func about(ref string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	text := "image " + ref + ": " + oneLine(err)
	if len(text) > maxError { // a registry may answer with anything
		text = strings.ToValidUTF8(text[:maxError], "") + "…"
	}
	return fault.Wrap(fault.KindOf(err), told{text, err}, "%s", text)
}

// told is an error whose whole text is public.
type told struct {
	text  string
	cause error
}

func (t told) Error() string { return t.text }
func (t told) Unwrap() error { return t.cause }

// planOf reads the configuration that a manifest names, and checks both against each other.
func planOf(ctx context.Context, m *v1.Manifest, digest, origin string, open blobs) (*plan, error) {
	if err := checkDigest(m.Config.Digest); err != nil {
		return nil, err
	}
	text, err := readSmall(ctx, open(m.Config), m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	c, root, err := parseConfig(text)
	if err != nil {
		return nil, err
	}
	p := &plan{digest: digest, id: m.Config.Digest.String(), origin: origin, root: root}
	p.layers, err = layersOf(m, c, open)
	return p, err
}

// readSmall reads a document whole and verifies its digest.
func readSmall(ctx context.Context, b blob, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fault.New(fault.Invalid, "it has %d bytes, at most %d are taken", d.Size, maxManifest)
	}
	r, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if got, _, _ := v1.SHA256(bytes.NewReader(text)); got != d.Digest {
		return nil, fault.New(fault.Invalid, "its bytes have the digest %s: it was changed on the way", got)
	}
	return text, nil
}
