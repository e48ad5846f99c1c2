package files_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner/files"
)

const mb = 1 << 20

func upload(sizes ...int) string {
	var entries []string
	for i, n := range sizes {
		entries = append(entries, fmt.Sprintf(`{"path":"f%d","content":"%s"}`, i, base64.StdEncoding.EncodeToString(make([]byte, n))))
	}
	return `{"copy":[` + strings.Join(entries, ",") + `]}`
}

// Uploads that are under way at the same time have one bound together, and each answer for which there is no room says so.
func TestUploadsShareTheirRoom(t *testing.T) {
	for name, c := range map[string]struct {
		memory, disk int64
		bodies       []string // all open at the same time
		fit          int      // so many
		inMemory     bool
	}{
		"all in memory":            {8 * mb, mb, []string{upload(mb / 2), upload(mb / 2), upload(100)}, 3, true},
		"memory is short":          {mb, 8 * mb, []string{upload(mb / 2), upload(mb / 2), upload(mb / 2), upload(mb / 2)}, 4, false},
		"the disk is full":         {mb, 8 * mb, []string{upload(3 * mb), upload(3 * mb), upload(100)}, 2, false},
		"one that is too large":    {mb, 8 * mb, []string{upload(9 * mb)}, 0, true},
		"many names":               {12 * mb, mb, []string{`{"delete":[` + strings.Repeat(`"a",`, 200_000) + `"a"]}`, `{"delete":[` + strings.Repeat(`"a",`, 200_000) + `"a"]}`}, 1, true},
		"a member that nobody has": {mb, mb, []string{`{"x":"` + strings.Repeat("y", 2*mb) + `"}`}, 0, true},
		"a long path":              {mb, mb, []string{`{"copy":[{"path":"` + strings.Repeat("y", 2*mb) + `"}]}`}, 0, true},
		"no bounds":                {0, 0, []string{upload(3 * mb), upload(3 * mb)}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			room := files.NewRoom(c.memory, c.disk)
			var open []*files.Update
			for _, body := range c.bodies {
				u, err := files.Read(strings.NewReader(body), time.Unix(0, 0), room)
				if err == nil {
					open = append(open, u)
					continue
				}
				if !fault.Is(err, fault.Exhausted) || !strings.Contains(fault.Public(err), "again in a moment") {
					t.Errorf("got %v", err)
				}
			}
			memory, disk := room.Used()
			if len(open) != c.fit || (disk == 0) != c.inMemory || c.memory > 0 && memory > c.memory || c.disk > 0 && disk > c.disk {
				t.Errorf("%d fit, with %d bytes in memory and %d on disk", len(open), memory, disk)
			}
			for _, u := range open {
				if err := u.Close(); err != nil {
					t.Error(err)
				}
				if err := u.Close(); err != nil { // which gives nothing twice
					t.Error(err)
				}
			}
			if memory, disk := room.Used(); memory != 0 || disk != 0 {
				t.Errorf("afterwards %d and %d bytes are kept", memory, disk)
			}
		})
	}
}

// However requests end, nothing of the room is lost.
func TestRoomIsGivenBackHoweverItEnds(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	room := files.NewRoom(3*mb, 5*mb)
	broken := errors.New("broken")
	for range 5 {
		body := upload(r.IntN(2*mb), r.IntN(2*mb), r.IntN(100))
		body = `{"delete":["a","` + strings.Repeat("b", r.IntN(200_000)) + `"],"delete":["c"],` + body[1:]
		var in io.Reader = strings.NewReader(body)
		if r.IntN(2) == 0 {
			in = io.MultiReader(strings.NewReader(body[:r.IntN(len(body))]), iotest.ErrReader(broken))
		}
		u, err := files.Read(in, time.Unix(0, 0), room)
		if err == nil {
			err = u.Close()
		}
		if err != nil && !errors.Is(err, broken) && !fault.Is(err, fault.Exhausted) {
			t.Fatal(err)
		}
		if memory, disk := room.Used(); memory != 0 || disk != 0 {
			t.Fatalf("%d and %d bytes are kept after %v", memory, disk, err)
		}
	}
}

// What a request makes of memory while it is read is reckoned before it is taken, whatever it consists of.
func TestWhatIsReckonedIsWhatIsTaken(t *testing.T) {
	const memory = 5 * mb
	for name, body := range map[string]string{
		"names of one byte":  `{"delete":[` + strings.Repeat(`"x",`, mb) + `"x"]}`,
		"names that nothing": `{"delete":[` + strings.Repeat(`"",`, mb/2) + `""]}`,
		"a long path":        `{"copy":[{"path":"` + strings.Repeat("y", 15*mb/4) + `","content":"eA=="}]}`,
		"long paths":         `{"copy":[` + strings.Repeat(`{"path":"`+strings.Repeat("y/", 125_000)+`","content":"eA=="},`, 12) + `{"path":"a"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			defer debug.SetGCPercent(debug.SetGCPercent(5))
			var most uint64
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			room := files.NewRoom(memory, 100*mb)
			look := func() {
				if runtime.ReadMemStats(&now); now.HeapAlloc > before.HeapAlloc {
					most = max(most, now.HeapAlloc-before.HeapAlloc)
				}
			}
			u, err := files.Read(&watched{from: strings.NewReader(body), each: look}, time.Unix(0, 0), room)
			look() // before what was decoded at last is collected
			if err == nil {
				err = u.Close()
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if err != nil && !fault.Is(err, fault.Exhausted) && !fault.Is(err, fault.Invalid) {
				t.Error(err)
			}
			t.Logf("%d MiB, %.200v", most>>20, err)
			if most > 3*memory {
				t.Errorf("%d MiB were taken at once, where %d are reckoned with", most>>20, memory>>20)
			}
		})
	}
}

// watched calls each before every read.
type watched struct {
	from io.Reader
	each func()
}

func (w *watched) Read(p []byte) (int, error) {
	w.each()
	return w.from.Read(p)
}
