package serve

import (
	"context"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
)

type resolveImage struct {
	Body struct{ Image string } `body:"json"`
}

// resolvedImage is what a reference means now.
type resolvedImage struct {
	Digest    string // "" when the reference has none
	Reference string // to exactly this image
	Bytes     int64  // to download; 0 when not known
}

// resolveImage asks where the images are.
func (h *Handler) resolveImage(ctx context.Context, _ auth.Identity, r resolveImage) (resolvedImage, error) {
	if h.images == nil {
		return resolvedImage{}, fault.New(fault.Unsupported, "this node has no images that it could ask about")
	}
	found, err := h.images.Resolve(ctx, r.Body.Image, nil)
	return resolvedImage{found.Digest, found.Reference, found.Bytes}, err
}
