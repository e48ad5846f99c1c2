package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/internal/sandbox"
)

// record is what is kept on disk of an image. Its file lies there only when all layers are whole.
type record struct {
	ID      string        // digest of the configuration
	Layers  []layerRecord // bottom first
	Env     []string
	WorkDir string
	User    string
	Used    time.Time
	Names   []learnedName
}

type layerRecord struct {
	DiffID string // hexadecimal
	Bytes  int64  // on disk
}

// learnedName is a reference that meant the image when it was last asked.
type learnedName struct {
	Key     string
	Digest  string
	Stamp   string `json:",omitempty"` // of a file on this node
	Learned time.Time
}

// pointer is what a reference means.
type pointer struct {
	id      string
	digest  string
	stamp   string
	learned time.Time
}

// held is an image in the store. Store.mu guards it.
type held struct {
	record
	root   sandbox.Root // never changed
	leases int
	saved  time.Time // Used as it is on disk

	saving sync.Mutex // one writer of the file at a time; taken before Store.mu
}

const (
	maxNames  = 64            // references known by one image; the oldest go first
	maxRecord = 8 << 20       // bytes
	usedGrain = 1 * time.Hour // how exactly the last use is known after a restart
)

// load reads what is there and removes debris: what was not finished, and what is not whole.
func (s *Store) load() error {
	if err := s.emptyWork(); err != nil {
		return err
	}
	files, err := os.ReadDir(filepath.Join(s.cfg.Dir, imagesDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(s.cfg.Dir, imagesDir, f.Name())
		r, err := readRecord(path)
		if err == nil {
			err = s.admit(r)
		}
		if err != nil {
			s.cfg.Log.WithError(err).WithField("file", f.Name()).Warn("an image in the store is not whole and is forgotten")
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return s.sweepUnknown()
}

func (s *Store) emptyWork() error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, workDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(s.cfg.Dir, workDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func readRecord(path string) (record, error) {
	var r record
	if !strings.HasSuffix(path, ".json") {
		return r, errors.New("an unfinished file")
	}
	info, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	if info.Size() > maxRecord {
		return r, fmt.Errorf("it has %d bytes", info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, err
	}
	if _, hex, _ := strings.Cut(r.ID, ":"); hex == "" || filepath.Base(path) != hex+".json" || len(r.Layers) == 0 {
		return r, errors.New("it does not say what its name says")
	}
	return r, nil
}

// admit enters an image whose layers are there.
func (s *Store) admit(r record) error {
	for _, l := range r.Layers {
		if info, err := os.Lstat(s.layerDir(l.DiffID)); err != nil || !info.IsDir() {
			return fmt.Errorf("layer %s is missing", l.DiffID)
		}
	}
	h := &held{record: r, root: s.rootOf(r), saved: r.Used}
	s.images[r.ID] = h
	for _, l := range r.Layers {
		s.layers[l.DiffID] = l.Bytes
	}
	for _, n := range r.Names {
		s.point(n, r.ID)
	}
	return nil
}

// point makes a name mean an image, unless it is known to mean another since.
func (s *Store) point(n learnedName, id string) {
	if old, ok := s.names[n.Key]; !ok || !n.Learned.Before(old.learned) {
		s.names[n.Key] = pointer{id, n.Digest, n.Stamp, n.Learned}
	}
}

// rootOf is what a sandbox is told: the layers topmost first, down to one that hides everything below.
func (s *Store) rootOf(r record) sandbox.Root {
	root := sandbox.Root{Env: r.Env, WorkDir: r.WorkDir, User: r.User}
	for _, l := range slices.Backward(r.Layers) {
		dir := s.layerDir(l.DiffID)
		root.Lower = append(root.Lower, dir)
		if opaqueRoot(dir) {
			break
		}
	}
	return root
}

// commit enters a pulled image with the names it is known by, and leases it once.
func (s *Store) commit(p *plan, learned []learnedName) (*held, error) {
	now := s.cfg.Now()
	s.mu.Lock()
	h := s.images[p.id]
	if h == nil {
		r := record{ID: p.id, Env: p.root.Env, WorkDir: p.root.WorkDir, User: p.root.User}
		for _, l := range p.layers {
			r.Layers = append(r.Layers, layerRecord{l.diffID.Hex, s.layers[l.diffID.Hex]})
		}
		h = &held{record: r, root: s.rootOf(r)}
		s.images[p.id] = h
	}
	h.leases++
	h.Used = now
	for _, n := range learned {
		h.Names = append(slices.DeleteFunc(h.Names, func(o learnedName) bool { return o.Key == n.Key }), n)
		s.point(n, p.id)
	}
	if over := len(h.Names) - maxNames; over > 0 {
		for _, n := range h.Names[:over] {
			if s.names[n.Key].id == p.id {
				delete(s.names, n.Key)
			}
		}
		h.Names = slices.Clone(h.Names[over:])
	}
	s.mu.Unlock()
	if err := s.save(h); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		h.leases--
		if h.leases == 0 && h.saved.IsZero() { // it never was on disk
			s.forget(h)
		}
		if isFull(err) {
			return nil, fmt.Errorf("the disk of the image store is full: %w", err)
		}
		return nil, fmt.Errorf("write down the image: %w", err)
	}
	return h, nil
}

// forget takes an image out of the store's tables. The caller holds mu.
func (s *Store) forget(h *held) {
	delete(s.images, h.ID)
	for _, n := range h.Names {
		if s.names[n.Key].id == h.ID {
			delete(s.names, n.Key)
		}
	}
}

func (s *Store) recordFile(id string) string {
	_, hex, _ := strings.Cut(id, ":")
	return filepath.Join(s.cfg.Dir, imagesDir, hex+".json")
}

// save writes an image's record, so that after a crash there is the old one or the new one.
func (s *Store) save(h *held) error {
	h.saving.Lock()
	defer h.saving.Unlock()
	s.mu.Lock()
	text, err := json.Marshal(h.record)
	used, known := h.Used, s.images[h.ID] == h
	s.mu.Unlock()
	if err != nil || !known {
		return err
	}
	if err := writeSynced(s.recordFile(h.ID), text); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.saved = used
	return nil
}

func writeSynced(path string, text []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		if gone := os.Remove(path + ".new"); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// present leases the image that a reference is known to mean, if it is there.
func (s *Store) present(r Reference, mark string) *Image {
	s.mu.Lock()
	p, ok := s.names[r.key()]
	h := s.images[p.id]
	if !ok || h == nil || p.stamp != mark {
		s.mu.Unlock()
		return nil
	}
	h.leases++
	h.Used = s.cfg.Now()
	stale := h.Used.Sub(h.saved) >= usedGrain
	s.mu.Unlock()
	if stale {
		s.wake()
	}
	return s.image(h, r.key())
}

// lease changes the number of leases of an image.
func (s *Store) lease(h *held, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.leases += by
	h.Used = s.cfg.Now()
}

// image is a lease that the caller has already been granted.
func (s *Store) image(h *held, key string) *Image {
	s.mu.Lock()
	digest := s.names[key].digest
	s.mu.Unlock()
	var once sync.Once
	return &Image{Digest: digest, Root: copied(h.root), release: func() {
		once.Do(func() {
			s.lease(h, -1)
			s.wake()
		})
	}}
}
