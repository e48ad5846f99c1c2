package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"rockpool/internal/logging"
)

// collectTime is how often the store looks for images that are too old. It also looks after every pull and every release.
const collectTime = time.Hour

// settleTime gathers events: many runners come and go in a second.
const settleTime = 5 * time.Second

// Run collects until ctx ends, and then returns when no pull is under way any more.
func (s *Store) Run(ctx context.Context) error {
	next := s.cfg.Now().Add(collectTime)
	timer := time.NewTimer(collectTime)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.pulls.wg.Wait()
			s.unpacking.wg.Wait()
			return s.saveUsed(0)
		case <-s.collect:
			if soon := s.cfg.Now().Add(settleTime); soon.Before(next) {
				next = soon
				timer.Reset(settleTime)
			}
			continue
		case <-timer.C:
		}
		next = s.cfg.Now().Add(collectTime)
		timer.Reset(collectTime)
		if err := errors.Join(s.saveUsed(usedGrain), s.Collect()); err != nil {
			s.cfg.Log.WithError(err).Warn("images that are no longer used could not be removed")
		}
	}
}

// wake has Run look again. It never blocks.
func (s *Store) wake() {
	select {
	case s.collect <- struct{}{}:
	default:
	}
}

// saveUsed writes down when images were last used, where the disk is behind by more than grain.
func (s *Store) saveUsed(grain time.Duration) error {
	var behind []*held
	s.mu.Lock()
	for _, h := range s.images {
		if h.Used.Sub(h.saved) > grain {
			behind = append(behind, h)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, h := range behind {
		errs = append(errs, s.save(h))
	}
	return errors.Join(errs...)
}

// Collect removes images that nobody uses: those not used for longer than MaxAge, and, while the store takes more than
// MaxBytes, the one not used for longest. Layers go with the last image that has them.
func (s *Store) Collect() error {
	if !s.due() {
		return nil
	}
	standing, err := s.standing()
	if err != nil {
		return err
	}
	gone, err := s.superfluous(standing)
	errs := []error{err}
	for _, h := range gone {
		s.cfg.Log.WithFields(logging.Fields{"image": h.name(), "used": h.Used.UTC().Format(time.RFC3339)}).Info("an image that nobody uses was removed")
	}
	return errors.Join(append(errs, s.sweep(standing))...)
}

// due reports whether there may be anything to remove, before all sandboxes are looked at.
func (s *Store) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := s.wanted()
	for hex := range s.layers {
		if !wanted[hex] && s.pins[hex] == 0 {
			return true
		}
	}
	full := s.cfg.MaxBytes > 0 && s.bytes() > s.cfg.MaxBytes
	for _, h := range s.images {
		if h.leases == 0 && (full || s.tooOld(h)) {
			return true
		}
	}
	return false
}

func (s *Store) tooOld(h *held) bool {
	return s.cfg.MaxAge > 0 && s.cfg.Now().Sub(h.Used) > s.cfg.MaxAge
}

// name is what people know an image by.
func (h *held) name() string {
	if len(h.Names) == 0 {
		return h.ID
	}
	return h.Names[0].Key
}

// standing is the set of layers that sandboxes stand on.
func (s *Store) standing() (map[string]bool, error) {
	set := map[string]bool{}
	if s.cfg.InUse == nil {
		return set, nil
	}
	dirs, err := s.cfg.InUse()
	if err != nil {
		return nil, fmt.Errorf("find out which images are in use: %w", err)
	}
	for _, dir := range dirs {
		if filepath.Dir(dir) == filepath.Join(s.cfg.Dir, layersDir) {
			set[filepath.Base(dir)] = true
		}
	}
	return set, nil
}

// superfluous takes the images that are to go out of the tables, and their records off the disk.
func (s *Store) superfluous(standing map[string]bool) (gone []*held, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	var idle []*held
	for _, h := range s.images {
		if h.leases > 0 {
			continue
		}
		if !slices.ContainsFunc(h.Layers, func(l layerRecord) bool { return !standing[l.DiffID] }) {
			h.Used = now
			continue
		}
		idle = append(idle, h)
	}
	slices.SortFunc(idle, func(a, b *held) int { return a.Used.Compare(b.Used) })
	for _, h := range idle {
		if s.tooOld(h) || s.cfg.MaxBytes > 0 && s.bytes() > s.cfg.MaxBytes {
			if err := os.Remove(s.recordFile(h.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return gone, fmt.Errorf("remove image: %w", err)
			}
			s.forget(h)
			gone = append(gone, h)
		}
	}
	return gone, nil
}

// bytes is what the images take, shared layers once. The caller holds mu.
func (s *Store) bytes() (sum int64) {
	for hex := range s.wanted() {
		sum += s.layers[hex]
	}
	return sum
}

// wanted are the layers that images have. The caller holds mu.
func (s *Store) wanted() map[string]bool {
	set := map[string]bool{}
	for _, h := range s.images {
		for _, l := range h.Layers {
			set[l.DiffID] = true
		}
	}
	return set
}

// sweep removes layers that no image has, no pull wants and no sandbox stands on.
func (s *Store) sweep(standing map[string]bool) error {
	s.mu.Lock()
	wanted := s.wanted()
	var moved []string
	var errs []error
	for hex := range s.layers {
		if wanted[hex] || s.pins[hex] > 0 || standing[hex] {
			continue
		}
		// Renamed while nobody can look, so that a pull never finds half a layer; removed afterwards.
		to := filepath.Join(s.cfg.Dir, workDir, "gone-"+hex)
		if err := os.Rename(s.layerDir(hex), to); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(s.layers, hex)
		moved = append(moved, to)
	}
	s.mu.Unlock()
	for _, dir := range moved {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// sweepUnknown removes the layers on disk that no image has, which an interrupted pull left.
func (s *Store) sweepUnknown() error {
	standing, err := s.standing()
	if err != nil {
		s.cfg.Log.WithError(err).Warn("what interrupted pulls left behind stays until the next start")
		return nil
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, layersDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, known := s.layers[e.Name()]; known || standing[e.Name()] {
			continue
		}
		if err := os.RemoveAll(s.layerDir(e.Name())); err != nil {
			return err
		}
	}
	return nil
}
