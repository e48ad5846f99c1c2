//go:build linux && cgo

package sandbox_test

import (
	"fmt"
	"sync"
	"testing"

	"rockpool/internal/sandbox"
)

func TestManySandboxesAtOnce(t *testing.T) {
	r, root := newRuntime(t), hostRoot(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				s, err := r.Create(t.Context(), sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: root})
				if err != nil {
					t.Error(err)
					return
				}
				if o := run(t, s, "hostname"); o.stdout != "runner\n" {
					t.Errorf("%+v", o)
				}
				if err := s.Destroy(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if ids, err := r.List(); err != nil || len(ids) > 0 {
		t.Error(ids, err)
	}
}
