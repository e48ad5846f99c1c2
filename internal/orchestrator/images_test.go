package orchestrator_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"rockpool/internal/fault"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/node/serve"
)

// oneImage is a store that knows one image.
type oneImage struct{}

func (oneImage) Resolve(_ context.Context, ref string, _ *image.Credentials) (image.Resolved, error) {
	if ref != "course/python:3" {
		return image.Resolved{}, fault.New(fault.NotFound, "image %s: the registry does not have it", ref)
	}
	return image.Resolved{Digest: "sha256:1", Reference: "course/python@sha256:1", Bytes: 7}, nil
}

func TestImagesAreResolvedByANode(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	ask := func(token, ref string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), "PUT", c.http.URL+"/v1/rockpool/image/resolve", strings.NewReader(`{"Image":"`+ref+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Nomad-Token", token)
		resp, err := c.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	if status, text := ask("secret", "course/python:3"); status != 501 {
		t.Errorf("without a node: %d %s", status, text)
	}
	n := newModelNode()
	n.Attributes[serve.AttributeImages] = "true"
	c.join(n)
	c.connect(n, serve.New(&agent{id: n.ID}, oneImage{}, inspect.Process{}, nil))
	for _, q := range []struct {
		token, ref string
		status     int
		want       string
	}{
		{"secret", "course/python:3", 200, `{"Digest":"sha256:1","Reference":"course/python@sha256:1","Bytes":7}`},
		{"secret", "course/none:1", 404, "the registry does not have it"},
		{"guess", "course/python:3", 403, "Permission denied"},
	} {
		if status, text := ask(q.token, q.ref); status != q.status || !strings.Contains(text, q.want) {
			t.Errorf("%s: %d %s", q.ref, status, text)
		}
	}
}
