package consensus

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"rockpool/internal/fault"
)

// An archive is what operators keep: a gzip tar of the snapshot's description, the state, and the digests of both, as Nomad's is laid out. The state inside is
// Rockpool's own.
const (
	metaFile = "meta.json"
	dataFile = "state.bin"
	sumsFile = "SHA256SUMS"
)

// meta is the part of meta.json that is read back. Unknown fields are left alone, so archives of other versions can be read.
type meta struct {
	Version int
	ID      string
	Index   uint64
	Term    uint64
	Size    int64
}

// Archive is one that was written. It must be closed.
type Archive struct {
	io.ReadCloser
	Digest string // for the header Digest
	Index  uint64
	Size   int64 // bytes
}

// Save writes a snapshot of this server's state into an archive.
func (r *Raft) Save(ctx context.Context) (*Archive, error) {
	n, err := r.node()
	if err != nil {
		return nil, err
	}
	var a *Archive
	err = r.await(ctx, func() (err error) {
		a, err = r.save(n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("save a snapshot: %w", err)
	}
	return a, nil
}

func (r *Raft) save(n *raft.Raft) (_ *Archive, err error) {
	m, state, err := r.newest(n)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	f, err := r.scratch()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	sum := sha256.New()
	if err := writeArchive(io.MultiWriter(f, sum), m, state); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &Archive{f, "sha-256=" + base64.StdEncoding.EncodeToString(sum.Sum(nil)), m.Index, size}, nil
}

// newest is a snapshot of the state as it is now: a new one, or the last one where nothing has happened since.
func (r *Raft) newest(n *raft.Raft) (meta, io.ReadCloser, error) {
	r.awaited.Add(1)
	f := n.Snapshot()
	err := f.Error()
	r.awaited.Add(-1)
	var m *raft.SnapshotMeta
	var state io.ReadCloser
	switch {
	case err == nil:
		m, state, err = f.Open()
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		store := *r.snaps.Load()
		list, lerr := store.List()
		if lerr != nil || len(list) == 0 {
			return meta{}, nil, errors.Join(err, lerr)
		}
		m, state, err = store.Open(list[0].ID)
	}
	if err != nil {
		return meta{}, nil, err
	}
	return meta{int(m.Version), m.ID, m.Index, m.Term, m.Size}, state, nil
}

// scratch is a file without a name: whatever happens, nothing of it stays.
func (r *Raft) scratch() (*os.File, error) {
	f, err := os.CreateTemp(r.cfg.Dir, "archive-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeArchive(w io.Writer, m meta, state io.Reader) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	desc, err := json.Marshal(m)
	if err != nil {
		return err
	}
	now := time.Now()
	put := func(name string, size int64, from io.Reader) (string, error) {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: now, Typeflag: tar.TypeReg}); err != nil {
			return "", err
		}
		h := sha256.New()
		_, err := io.Copy(io.MultiWriter(t, h), from)
		return hex.EncodeToString(h.Sum(nil)), err
	}
	first, err := put(metaFile, int64(len(desc)), bytes.NewReader(desc))
	if err != nil {
		return err
	}
	second, err := put(dataFile, m.Size, state)
	if err != nil {
		return err
	}
	sums := first + "  " + metaFile + "\n" + second + "  " + dataFile + "\n"
	if _, err := put(sumsFile, int64(len(sums)), strings.NewReader(sums)); err != nil {
		return err
	}
	return errors.Join(t.Close(), z.Close())
}

const (
	smallFile   = 1 << 20 // bytes that a description or the digests may have
	restoreBusy = 10 * time.Minute
)

// errArchive is the client's fault.
func errArchive(format string, args ...any) error {
	return fault.New(fault.Invalid, "the snapshot cannot be restored: "+format, args...)
}

// readArchive checks an archive and writes its state to w. maxState bounds the state in bytes.
func readArchive(in io.Reader, w io.Writer, maxState int64) (meta, error) {
	z, err := gzip.NewReader(bufio.NewReader(in))
	if err != nil {
		return meta{}, errArchive("it is not compressed as gzip: %v", err)
	}
	var m meta
	var sums string
	got := map[string]string{}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return meta{}, errArchive("%v", err)
		}
		sum := sha256.New()
		switch h.Name {
		case metaFile:
			var b []byte
			if b, err = small(t, sum); err == nil {
				err = json.Unmarshal(b, &m)
			}
		case dataFile:
			var n int64
			n, err = io.Copy(io.MultiWriter(w, sum), io.LimitReader(t, maxState+1))
			if n > maxState {
				return meta{}, fault.New(fault.TooLarge, "the snapshot's state is larger than %d bytes", maxState)
			}
		case sumsFile:
			var b []byte
			b, err = small(t, sum)
			sums = string(b)
		default:
			return meta{}, errArchive("it holds a file %q", h.Name)
		}
		if err != nil {
			return meta{}, errArchive("%s: %v", h.Name, err)
		}
		if got[h.Name] != "" {
			return meta{}, errArchive("it holds %s twice", h.Name)
		}
		got[h.Name] = hex.EncodeToString(sum.Sum(nil))
	}
	// What follows the tar's end still belongs to gzip's own checksum.
	if _, err := io.Copy(io.Discard, z); err != nil {
		return meta{}, errArchive("%v", err)
	}
	want := map[string]string{}
	for line := range strings.Lines(sums) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			want[name] = sum
		}
	}
	for _, name := range []string{metaFile, dataFile} {
		if got[name] == "" || want[name] != got[name] {
			return meta{}, errArchive("%s is missing or does not have the digest that is written down for it", name)
		}
	}
	return m, nil
}

func small(from io.Reader, sum hash.Hash) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(from, smallFile+1))
	if err == nil && len(b) > smallFile {
		err = fmt.Errorf("it is larger than %d bytes", smallFile)
	}
	_, _ = sum.Write(b)
	return b, err
}

// Restore replaces the whole cluster's state by that of an archive; only the leader can. check sees the state before anything is changed. Calls that are
// under way fail, and a new term begins, since nothing that the old one knows is true any more.
func (r *Raft) Restore(ctx context.Context, in io.Reader, maxState int64, check func(io.Reader) error) error {
	n, err := r.node()
	if err != nil {
		return err
	}
	f, err := r.scratch()
	if err != nil {
		return err
	}
	m, err := readArchive(in, f, maxState)
	if err == nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			if cerr := check(f); cerr != nil {
				err = errArchive("%v", cerr)
			}
		}
	}
	if err == nil {
		m.Size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if n.State() != raft.Leader {
		return errors.Join(fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader"), f.Close())
	}
	err = r.await(ctx, func() error {
		defer f.Close()
		defer func() { // also after an error: the state may have been replaced before it
			select {
			case r.again <- struct{}{}:
			default:
			}
		}()
		return n.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: m.Index, Term: m.Term, Size: m.Size}, f, restoreBusy)
	})
	if err != nil {
		return fmt.Errorf("restore a snapshot: %w", err)
	}
	return nil
}
