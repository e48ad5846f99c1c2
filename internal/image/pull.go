package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/logging"
)

// parallel is how many layers of one image are fetched and unpacked at a time.
const parallel = 3

// pull gets an image from its source and enters it into the store. The result holds one lease.
func (s *Store) pull(ctx context.Context, r Reference, mark string, c *Credentials, m *meter) (_ *held, err error) {
	p, done, err := s.plan(ctx, r, c)
	if err != nil {
		return nil, err
	}
	defer func() { // what was read was verified: a source that closes badly changes nothing about it
		if closeErr := done(); err != nil {
			err = errors.Join(err, closeErr)
		}
	}()
	learned := []learnedName{{Key: r.key(), Digest: p.digest, Stamp: mark, Learned: s.cfg.Now()}}
	if r.kind == kindRegistry && p.digest != r.key() {
		learned = append(learned, learnedName{Key: p.digest, Digest: p.digest, Learned: s.cfg.Now()})
	}
	unpin := s.pin(p.layers)
	err = s.fetch(ctx, r, p, m)
	var h *held
	if err == nil {
		h, err = s.commit(p, learned)
	}
	unpin()
	if err == nil {
		return h, nil
	}
	if standing, unknown := s.standing(); unknown == nil { // else the next collection does it
		err = errors.Join(err, s.sweep(standing))
	}
	return nil, err
}

// pin keeps layers from being collected until an image has them.
func (s *Store) pin(layers []blob) (unpin func()) {
	add := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range layers {
			if s.pins[l.diffID.Hex] += n; s.pins[l.diffID.Hex] == 0 {
				delete(s.pins, l.diffID.Hex)
			}
		}
	}
	add(1)
	return func() { add(-1) }
}

// fetch unpacks the layers that are missing.
func (s *Store) fetch(ctx context.Context, r Reference, p *plan, m *meter) error {
	var missing []blob
	doing := Progress{Reference: r.text}
	s.mu.Lock()
	for _, l := range p.layers {
		if _, ok := s.layers[l.diffID.Hex]; !ok {
			missing = append(missing, l)
			doing.Bytes += l.size
		}
	}
	s.mu.Unlock()
	if len(missing) == 0 {
		return nil
	}
	doing.Layers = len(missing)
	m.begin(doing)
	begun := s.cfg.Now()
	left := &budget{limits: s.cfg.Limits}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, l := range missing {
		g.Go(func() error {
			// Who only claims to have the same layer cannot make others wait for it.
			key := strings.Join([]string{l.diffID.Hex, l.digest.Hex, p.origin}, "\n")
			_, err := s.unpacking.do(gctx, key, nil, func(ctx context.Context, _ *meter) (int64, error) {
				return s.unpackLayer(ctx, l, left, m)
			})
			if err != nil {
				return fmt.Errorf("layer %s: %w", l, err)
			}
			m.layersDone.Add(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := flush(s.cfg.Dir); err != nil {
		return fmt.Errorf("write the layers to the disk: %w", err)
	}
	s.cfg.Log.WithFields(logging.Fields{
		"image": r.text, "digest": p.digest, "layers": len(missing), "bytes": m.bytesDone.Load(), "duration": s.cfg.Now().Sub(begun).String(),
	}).Info("an image was pulled")
	return nil
}

// unpackLayer fills a directory of its own and gives it the layer's name once all of it is verified.
func (s *Store) unpackLayer(ctx context.Context, l blob, left *budget, m *meter) (size int64, err error) {
	s.mu.Lock()
	size, there := s.layers[l.diffID.Hex]
	s.mu.Unlock()
	if there {
		return size, nil
	}
	var dir string
	remove := func() error {
		if dir == "" {
			return nil
		}
		return os.RemoveAll(dir)
	}
	defer func() { err = errors.Join(err, remove()) }()
	renew := func() (string, error) {
		if err := remove(); err != nil {
			return "", err
		}
		made, err := os.MkdirTemp(filepath.Join(s.cfg.Dir, workDir), "layer-")
		if err != nil {
			return "", err
		}
		dir = made
		return dir, os.Chmod(dir, 0o755)
	}
	size, err = l.fill(ctx, renew, left, func(n int64) { m.bytesDone.Add(n) })
	if err != nil {
		return 0, err
	}
	final := s.layerDir(l.diffID.Hex)
	if err := os.Rename(dir, final); err != nil && !errors.Is(err, os.ErrExist) {
		return 0, fmt.Errorf("name the layer: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[l.diffID.Hex] = size
	return size, nil
}
