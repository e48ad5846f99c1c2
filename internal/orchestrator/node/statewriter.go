package node

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"sync"
)

// stateWriter writes the records of a state in one goroutine, those that are there at once in one piece. Each task has a goroutine of its own: one that
// encodes grows its stack for a record or two, and ends soon after.
type stateWriter struct {
	db    *stateDB
	there chan struct{} // level trigger: something is queued, or no more will be
	spare sync.Pool     // of *unwritten that nobody waits for any more; their channels belong to the test that made them, where time is simulated

	running sync.WaitGroup // until all is written

	mu    sync.Mutex
	queue []*unwritten
	ended bool

	// of the goroutine alone
	out   writer
	ready []*unwritten
}

// unwritten is a record that somebody waits for.
type unwritten struct {
	line line
	done chan error // has room for one

	at, n int64 // within the piece; valid while it is written
}

const (
	// longestPiece is how many bytes of records a piece has before no more is added to it.
	longestPiece = 256 << 10
	// longestKept is the size up to which what a piece was made in is used again.
	longestKept = 1 << 20
)

var errStateClosed = errors.New("the state is not open")

func newStateWriter(db *stateDB) *stateWriter {
	return &stateWriter{db: db, there: make(chan struct{}, 1)}
}

// start begins to write. end must follow.
func (w *stateWriter) start() { w.running.Go(w.run) }

// append returns when the record is written.
func (w *stateWriter) append(l line) error {
	if w == nil {
		return errStateClosed
	}
	u, ok := w.spare.Get().(*unwritten)
	if !ok {
		u = &unwritten{done: make(chan error, 1)}
	}
	defer func() {
		u.line = line{}
		w.spare.Put(u)
	}()
	u.line = l
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return errStateClosed
	}
	w.queue = append(w.queue, u)
	w.mu.Unlock()
	w.wake()
	return <-u.done
}

func (w *stateWriter) wake() {
	select {
	case w.there <- struct{}{}:
	default:
	}
}

// end returns when what was given to the writer is written. It takes no more.
func (w *stateWriter) end() {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.wake()
	w.running.Wait()
}

func (w *stateWriter) run() {
	var queue, spare []*unwritten
	for {
		w.mu.Lock()
		queue, w.queue = w.queue, spare
		ended := w.ended
		w.mu.Unlock()
		if len(queue) == 0 {
			if spare = queue; ended {
				return
			}
			<-w.there
			continue
		}
		for rest := queue; len(rest) > 0; {
			rest = w.piece(rest)
		}
		clear(queue)
		spare = queue[:0]
	}
}

// piece writes as many records as belong in one piece, answers who waits for them, and returns the rest.
func (w *stateWriter) piece(queue []*unwritten) []*unwritten {
	for len(queue) > 0 && w.out.Len() < longestPiece {
		u := queue[0]
		queue = queue[1:]
		if err := w.encode(u); err != nil {
			u.done <- err
			continue
		}
		w.ready = append(w.ready, u)
	}
	w.write()
	clear(w.ready)
	w.ready = w.ready[:0]
	w.out.Reset()
	if w.out.Cap() > longestKept {
		w.out = writer{}
	}
	return queue
}

// write writes the piece, or where that fails each of its records: there may be room for some, and one that is too large is nobody else's failure.
func (w *stateWriter) write() {
	piece := w.out.Bytes()
	err := w.db.write(piece, w.ready)
	for i, u := range w.ready {
		if err != nil && len(w.ready) > 1 {
			at := u.at
			u.at = 0
			u.done <- w.db.write(piece[at:at+u.n], w.ready[i:i+1])
			continue
		}
		u.done <- err
	}
}

// encode adds a record to the piece: its checksum, a space, JSON, a newline.
func (w *stateWriter) encode(u *unwritten) error {
	at := w.out.Len()
	w.out.WriteString(noSum)
	u.line.write(&w.out)
	if err := w.out.Err(); err != nil {
		w.out.Undo(at)
		return err
	}
	b := w.out.Bytes()[at:]
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.ChecksumIEEE(b[len(noSum):]))
	hex.Encode(b, sum[:])
	w.out.WriteByte('\n')
	u.at, u.n = int64(at), int64(len(b)+1)
	return nil
}

// write adds a piece to the file.
func (db *stateDB) write(piece []byte, records []*unwritten) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.torn {
		if err := db.cut(); err != nil {
			return err
		}
	}
	if _, err := db.file.WriteAt(piece, db.size); err != nil {
		return errors.Join(err, db.cut())
	}
	for _, u := range records {
		db.note(u.line, span{db.size + u.at, u.n})
	}
	db.size += int64(len(piece))
	limit := db.limit
	if limit == 0 {
		limit = compactFrom
	}
	if waste := db.size - db.live; waste >= limit && waste > db.live && db.size >= db.after {
		if err := db.compact(); err != nil { // the records are written, to a file that is longer than it need be
			if db.after = db.size + limit; db.failed != nil {
				db.failed(err)
			}
		}
	}
	return nil
}

// cut takes away what was written of a piece that failed: what stood there would be read as records, or hide those behind it. The caller holds mu.
func (db *stateDB) cut() error {
	err := db.file.Truncate(db.size)
	db.torn = err != nil
	return err
}

// noSum is where a checksum will be.
const noSum = "-------- "
