package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"rockpool/internal/fault"
)

// Credentials are shown to the registry that a reference names, and to no mirror.
type Credentials struct {
	Username, Password string
}

// String keeps them out of logs.
func (c Credentials) String() string { return "credentials" }

// GoString keeps them out of logs.
func (c Credentials) GoString() string { return c.String() }

// mirror is a place to ask before a registry itself.
type mirror struct {
	host, prefix string
}

// registries reaches the registries of references.
type registries struct {
	guard       *guard
	mirrors     map[string][]mirror // by registry, as package name writes it
	credentials string
}

func newRegistries(cfg Config) (*registries, error) {
	r := &registries{mirrors: map[string][]mirror{}, credentials: cfg.Credentials}
	plain, named := append([]string(nil), cfg.PlainHTTP...), []string(nil)
	for _, text := range cfg.PlainHTTP {
		if _, err := name.NewRegistry(text, name.StrictValidation); err != nil || strings.ContainsAny(text, "/ ") {
			return nil, fmt.Errorf("images: plain HTTP registry %q: a host, with a port when it is not 80, is wanted", text)
		}
	}
	for _, text := range cfg.Mirrors {
		registry, place, ok := strings.Cut(text, "=")
		reg, err := name.NewRegistry(strings.TrimSpace(registry))
		if !ok || err != nil || registry == "" {
			return nil, fmt.Errorf("images: mirror %q: registry=host[/path] is wanted", text)
		}
		place, insecure := strings.CutPrefix(strings.TrimSpace(place), "http://")
		place = strings.TrimSuffix(strings.TrimPrefix(place, "https://"), "/")
		host, prefix, _ := strings.Cut(place, "/")
		if _, err := name.NewRegistry(host, name.StrictValidation); err != nil || host == "" {
			return nil, fmt.Errorf("images: mirror %q: registry=host[/path] is wanted", text)
		}
		if insecure {
			plain = append(plain, host)
		} else {
			named = append(named, host)
		}
		r.mirrors[reg.RegistryStr()] = append(r.mirrors[reg.RegistryStr()], mirror{host, prefix})
	}
	r.guard = newGuard(plain, named, cfg.RootCAs)
	return r, nil
}

// at is a reference's name at a mirror.
func (m mirror) at(ref name.Reference) (name.Reference, error) {
	repository := ref.Context().RepositoryStr()
	if m.prefix != "" {
		repository = m.prefix + "/" + repository
	}
	separator := ":"
	if _, ok := ref.(name.Digest); ok {
		separator = "@"
	}
	return name.ParseReference(m.host + "/" + repository + separator + ref.Identifier())
}

// pulled is one place that answered.
type pulled struct {
	puller *remote.Puller
	name   name.Reference
	top    *remote.Descriptor
}

// find asks the mirrors of a reference's registry in order, then the registry itself.
func (r *registries) find(ctx context.Context, ref name.Reference, c *Credentials) (*pulled, error) {
	var failed []error
	for _, m := range r.mirrors[ref.Context().RegistryStr()] {
		at, err := m.at(ref)
		var found *pulled
		if err == nil {
			found, err = r.ask(ctx, at, nil)
		}
		if err == nil {
			return found, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, fmt.Errorf("mirror %s: %w", m.host, err))
	}
	found, err := r.ask(ctx, ref, c)
	if err != nil && len(failed) > 0 {
		return nil, fault.Wrap(fault.KindOf(err), errors.Join(append([]error{err}, failed...)...), "neither the registry nor a mirror of it has it for us")
	}
	return found, err
}

func (r *registries) ask(ctx context.Context, ref name.Reference, c *Credentials) (*pulled, error) {
	auth, err := r.authenticator(ref.Context(), c)
	if err != nil {
		return nil, err
	}
	puller, err := remote.NewPuller(remote.WithTransport(r.guard), remote.WithAuth(auth), remote.WithUserAgent("rockpool"))
	if err != nil {
		return nil, err
	}
	top, err := puller.Get(ctx, ref)
	if err != nil {
		return nil, r.explain(ctx, ref.Context(), err)
	}
	if err := checkDigest(top.Digest); err != nil {
		return nil, err
	}
	return &pulled{puller, ref, top}, nil
}

// explain says in one sentence what a registry's refusal means.
func (r *registries) explain(ctx context.Context, repo name.Repository, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e
	}
	e, ok := errors.AsType[*transport.Error](err)
	switch {
	case !ok:
		return fault.Wrap(fault.Unavailable, err, "the registry %s cannot be reached", repo.RegistryStr())
	case e.StatusCode == http.StatusNotFound:
		return fault.Wrap(fault.NotFound, err, "the registry %s does not have it", repo.RegistryStr())
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
		return fault.Wrap(fault.Forbidden, err, "the registry %s does not allow it: the name is wrong, or credentials are missing", repo.RegistryStr())
	case e.StatusCode == http.StatusTooManyRequests:
		return fault.Wrap(fault.Unavailable, err, "the registry %s has had too many requests from here", repo.RegistryStr())
	}
	return fault.Wrap(fault.Unavailable, err, "the registry %s answered with an error", repo.RegistryStr())
}

// authenticator finds the credentials for a repository: those of the job, else those of the Docker config file, which is
// read each time so that a login needs no restart.
func (r *registries) authenticator(repo name.Repository, c *Credentials) (authn.Authenticator, error) {
	if c != nil {
		return &authn.Basic{Username: c.Username, Password: c.Password}, nil
	}
	if r.credentials == "" {
		return authn.DefaultKeychain.Resolve(repo)
	}
	f, err := os.Open(r.credentials)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the file with the credentials of registries cannot be read")
	}
	defer func() { _ = f.Close() }()
	file, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the file with the credentials of registries cannot be read")
	}
	for _, key := range []string{repo.String(), repo.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		a, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the credentials of registry %s cannot be had", repo.RegistryStr())
		}
		if a.Username+a.Password+a.Auth+a.IdentityToken+a.RegistryToken != "" {
			return authn.FromConfig(authn.AuthConfig{
				Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// manifest reads a manifest by its digest, verified.
func (p *pulled) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fault.New(fault.Invalid, "manifest %s has %d bytes, at most %d are taken", d.Digest, d.Size, maxManifest)
	}
	got, err := p.puller.Get(ctx, p.name.Context().Digest(d.Digest.String()))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return got.Manifest, nil
}

// blob opens a blob; what comes of it is verified where it is read.
func (p *pulled) blob(d v1.Descriptor) blob {
	return blob{open: func(ctx context.Context) (io.ReadCloser, error) {
		l, err := p.puller.Layer(ctx, p.name.Context().Digest(d.Digest.String()))
		if err != nil {
			return nil, err
		}
		return l.Compressed()
	}}
}

// plan finds the image for this node.
func (p *pulled) plan(ctx context.Context) (*plan, error) {
	if len(p.top.Manifest) > maxManifest {
		return nil, fault.New(fault.Invalid, "its manifest has %d bytes, at most %d are taken", len(p.top.Manifest), maxManifest)
	}
	m, err := choose(ctx, p.top.Manifest, p.top.MediaType, p.manifest)
	if err != nil {
		return nil, err
	}
	return planOf(ctx, m, p.top.Digest.String(), p.name.Context().String(), p.blob)
}
