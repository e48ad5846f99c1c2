package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"rockpool/internal/fault"
)

// Limits bound what one image can take. Zero means the default given with each field.
type Limits struct {
	Bytes   int64 // unpacked, all layers together; default 32 GiB
	Entries int64 // files, directories and links, all layers together; default 2 million
}

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 32 << 30
	}
	if l.Entries <= 0 {
		l.Entries = 2_000_000
	}
	return l
}

// budget is what is left of the limits of one image.
type budget struct {
	limits                 Limits
	entries, bytes, passed atomic.Int64
}

// perEntry is what an archive may have for an entry beside its content, on average and in bytes.
const perEntry = 8 << 10

// pass takes what is read of archives, headers and all: any number of these can stand before one entry.
func (b *budget) pass(n int) error {
	if limit := b.limits.Bytes + b.limits.Entries*perEntry; b.passed.Add(int64(n)) > limit {
		return fault.New(fault.Invalid, "the image has more than %d bytes in its archives", limit)
	}
	return nil
}

// passing reads an archive within its budget.
type passing struct {
	inner io.Reader
	left  *budget
}

func (p passing) Read(b []byte) (int, error) {
	n, err := p.inner.Read(b)
	if over := p.left.pass(n); over != nil {
		return 0, over
	}
	return n, err
}

func (b *budget) take(entries, bytes int64) error {
	if b.entries.Add(entries) > b.limits.Entries {
		return fault.New(fault.Invalid, "the image has more than %d entries", b.limits.Entries)
	}
	if b.bytes.Add(bytes) > b.limits.Bytes {
		return fault.New(fault.Invalid, "the image has more than %d bytes unpacked", b.limits.Bytes)
	}
	return nil
}

// blob is one layer as a source offers it.
type blob struct {
	diffID v1.Hash // of the archive, unpacked: what the layer is known by
	digest v1.Hash // of the bytes that open gives; zero = not known, the diffID alone is verified
	size   int64   // of these bytes; 0 = not known
	open   func(ctx context.Context) (io.ReadCloser, error)
}

func (b blob) String() string {
	if b.digest.Hex != "" {
		return b.digest.String()
	}
	return b.diffID.String()
}

// attempts is how often a layer is asked for whose transfer is cut.
const attempts = 3

// fill unpacks a layer into an empty directory that renew makes, and verifies both digests of it. It returns the bytes on disk.
func (b blob) fill(ctx context.Context, renew func() (string, error), left *budget, arrived func(int64)) (int64, error) {
	for try := 1; ; try++ {
		dir, err := renew()
		if err != nil {
			return 0, err
		}
		size, cut, err := b.fillOnce(ctx, dir, left, arrived)
		if err == nil || !cut || try == attempts || ctx.Err() != nil {
			return size, err
		}
	}
}

func (b blob) fillOnce(ctx context.Context, dir string, left *budget, arrived func(int64)) (size int64, cut bool, err error) {
	raw, err := b.open(ctx)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = raw.Close() }()
	in := &arriving{inner: raw, sum: sha256.New(), size: b.size, arrived: arrived}
	defer func() {
		if err != nil {
			arrived(-in.n) // they come again, or never
		}
	}()
	sum := sha256.New()
	compressed := bufio.NewReaderSize(in, 64<<10)
	plain, done, err := decompress(compressed)
	if err == nil {
		// Whatever follows the archive's end belongs to what the digests cover.
		archive := bufio.NewReaderSize(io.TeeReader(passing{plain, left}, sum), 64<<10)
		if size, err = unpack(ctx, dir, archive, left); err == nil {
			_, err = io.Copy(&counting{left}, archive)
		}
		done()
	}
	if ctx.Err() != nil {
		return 0, false, context.Cause(ctx)
	}
	if isFull(err) {
		return 0, false, fault.Wrap(fault.Exhausted, err, "the disk of the image store is full")
	}
	if _, tooMuch := errors.AsType[*fault.Error](err); tooMuch {
		return 0, false, err
	}
	_, drainErr := io.Copy(io.Discard, compressed) // an archive that cannot be read says less than a digest that is wrong
	if err == nil {
		err = drainErr
	}
	if in.short() {
		return 0, true, fault.Wrap(fault.Unavailable, errors.Join(err, in.err), "it was cut off after %d of %d bytes", in.n, b.size)
	}
	if got := digestOf(in.sum); b.digest.Hex != "" && got != b.digest {
		return 0, false, fault.New(fault.Invalid, "its bytes have the digest %s instead of %s: it was changed on the way", got, b.digest)
	}
	if err != nil {
		return 0, false, err
	}
	if got := digestOf(sum); got != b.diffID {
		return 0, false, fault.New(fault.Invalid, "its contents have the digest %s, the image's configuration says %s", got, b.diffID)
	}
	return size, false, nil
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func digestOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// arriving counts and sums what comes of a blob, and never takes more than was said.
type arriving struct {
	inner   io.Reader
	sum     hash.Hash
	size, n int64
	arrived func(int64)
	err     error
}

func (a *arriving) Read(p []byte) (int, error) {
	if a.size > 0 && a.n >= a.size {
		return 0, io.EOF
	}
	if a.size > 0 && int64(len(p)) > a.size-a.n {
		p = p[:a.size-a.n]
	}
	n, err := a.inner.Read(p)
	a.n += int64(n)
	_, _ = a.sum.Write(p[:n])
	a.arrived(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		a.err = err
	}
	return n, err
}

func (a *arriving) short() bool { return a.size > 0 && a.n < a.size }

// counting takes what is discarded from the budget: zeros after an archive's end compress well.
type counting struct{ left *budget }

func (c *counting) Write(p []byte) (int, error) {
	if err := c.left.take(0, int64(len(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// maxWindow bounds the memory that unpacking a zstd layer takes, in bytes.
const maxWindow = 128 << 20

// decompress looks at what a layer begins with: media types are often wrong.
func decompress(r *bufio.Reader) (io.Reader, func(), error) {
	head, err := r.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("unpack gzip: %w", err)
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("unpack zstd: %w", err)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}), bytes.HasPrefix(head, []byte("BZh")):
		return nil, nil, fault.New(fault.Invalid, "it is compressed with xz or bzip2; gzip and zstd are understood")
	}
	return r, func() {}, nil
}
