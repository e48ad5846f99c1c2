package packed_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

type value struct {
	Name string
	Of   map[string]int
}

func form(t testing.TB, v any) []byte {
	t.Helper()
	b, err := packed.Append(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEqualFormsAreOneValue(t *testing.T) {
	var s packed.Shared[value]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				want := value{fmt.Sprint(i), map[string]int{"n": i}}
				got := packed.Read(&s, form(t, want))
				if diff := cmp.Diff(want, *got); diff != "" {
					t.Error(diff)
				}
				if again := packed.Read(&s, form(t, want)); again != got {
					t.Errorf("%d is two values", i)
				}
			}
		})
	}
	wg.Wait()
	if changed, err := packed.Changed(&s); changed != nil || err != nil {
		t.Errorf("%q was changed, %v", changed, err)
	}
	packed.Read(&s, form(t, value{"7", map[string]int{"n": 7}})).Of["n"]++
	if changed, err := packed.Changed(&s); string(changed) != string(form(t, value{"7", map[string]int{"n": 7}})) || err != nil {
		t.Errorf("%q was changed, %v", changed, err)
	}
}

// However many different values come, few are kept; and one that comes between them all the time stays.
func TestWhatIsSharedIsBounded(t *testing.T) {
	for _, length := range []int{0, 5000, 20000} {
		var s packed.Shared[value]
		often := form(t, value{Name: "often"})
		first := packed.Read(&s, often)
		for i := range 3000 {
			packed.Read(&s, form(t, value{Name: strings.Repeat("x", length) + fmt.Sprint(i)}))
			if packed.Read(&s, often) != first {
				t.Fatalf("forms of %d bytes: what comes often was forgotten after %d", length, i)
			}
		}
		values, bytes := s.Kept()
		if bytes > 2<<20 || values > 1024 || values < 1 || length > 16<<10 && values > 1 {
			t.Errorf("forms of %d bytes: %d values with %d bytes are kept", length, values, bytes)
		}
	}
}

func TestADamagedFormIsAnError(t *testing.T) {
	var s packed.Shared[value]
	for range 2 {
		func() {
			defer func() {
				if err, ok := recover().(error); !ok {
					t.Errorf("got %v", err)
				}
			}()
			packed.Read(&s, form(t, "no value"))
		}()
	}
	if values, _ := s.Kept(); values != 0 {
		t.Errorf("%d values are kept", values)
	}
}

func TestFormsAreSorted(t *testing.T) {
	m := map[string]int{}
	for i := range 100 {
		m[fmt.Sprint(i)] = i
	}
	for range 10 {
		if string(form(t, m)) != string(form(t, maps.Clone(m))) {
			t.Fatal("equal maps have different forms")
		}
	}
}

// Details of equal events are one value, whether they were made here or read; others are others, and long ones are not kept.
func TestEqualDetailsAreOneValue(t *testing.T) {
	same := func(a, b map[string]string) bool {
		return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
	}
	exit := packed.Details("exit_code", "0", "signal", "0")
	if diff := cmp.Diff(map[string]string{"exit_code": "0", "signal": "0"}, exit); diff != "" {
		t.Error(diff)
	}
	if !same(exit, packed.Details("exit_code", "0", "signal", "0")) {
		t.Error("equal details are two values")
	}
	if none := packed.Details(); none == nil || len(none) > 0 || !same(none, packed.Details()) {
		t.Errorf("no details are %v", none)
	}
	for _, other := range [][]string{{"exit_code", "0", "signal", "9"}, {"exit_code", "0"}, {"exit_code", "0s", "ignal", "0"}} {
		if diff := cmp.Diff(exit, packed.Details(other...)); diff == "" {
			t.Errorf("%q are those of another exit", other)
		}
	}
	long := strings.Repeat("x", 5000)
	if a, b := packed.Details("message", long), packed.Details("message", long); same(a, b) || a["message"] != long {
		t.Error("long details are remembered")
	}

	update := model.AllocUpdate{ID: "a", ClientStatus: model.ClientRunning, TaskStates: map[string]*model.TaskState{
		"t": {State: model.TaskRunning, Events: []*model.TaskEvent{{Type: model.TaskTerminated, Details: maps.Clone(exit)}, {Type: model.TaskStarted}}},
	}}
	b, err := packed.Reports([]*model.AllocUpdate{&update})
	if err != nil {
		t.Fatal(err)
	}
	read, err := packed.ReadReports(b)
	if err != nil {
		t.Fatal(err)
	}
	events := read[0].TaskStates["t"].Events
	if !same(events[0].Details, exit) || events[1].Details != nil {
		t.Errorf("read as %v and %v", events[0].Details, events[1].Details)
	}
}

// One text may stand for thousands in a report. What is made of it is no larger than what it says.
func TestDetailsThatAreOneTextTakeNoMore(t *testing.T) {
	text := strings.Repeat("x", 64<<10)
	pairs := make([]string, 16<<10)
	for i := range pairs {
		pairs[i] = text
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m := packed.Details(pairs...)
	runtime.ReadMemStats(&after)
	if len(m) != 1 || m[text] != text {
		t.Errorf("there are %d details", len(m))
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
		t.Errorf("%d texts of one took %d bytes", len(pairs), took)
	}
}

// Texts and counts that are alike are one in memory, and those that are too long for it are left as they are.
func TestWordsAndCountsThatAreAlikeAreOne(t *testing.T) {
	text := func(n int) string { return strings.Repeat("w", n) }
	for _, c := range []struct {
		n   int
		one bool
	}{{1, true}, {64, true}, {65, false}} {
		a, b, other := text(c.n), text(c.n), text(c.n)+"x"
		packed.Words(&a, &b, &other)
		if a != text(c.n) || b != a || other != a+"x" || (unsafe.StringData(a) == unsafe.StringData(b)) != c.one {
			t.Errorf("%d bytes: %q, %q, %q", c.n, a, b, other)
		}
	}
	empty := ""
	packed.Words(&empty)
	if empty != "" {
		t.Errorf("nothing is %q", empty)
	}
	at := func(m map[string]int) uintptr { return reflect.ValueOf(m).Pointer() }
	for _, c := range []struct {
		n   int
		one bool
	}{{1, true}, {8, true}, {2000, false}} {
		counts := func() map[string]int {
			m := map[string]int{}
			for i := range c.n {
				m[fmt.Sprint("group-", i)] = i
			}
			return m
		}
		a, b := packed.Counts(counts()), packed.Counts(counts())
		if !maps.Equal(a, counts()) || !maps.Equal(b, counts()) || (at(a) == at(b)) != c.one {
			t.Errorf("%d counts: one is %t", c.n, at(a) == at(b))
		}
	}
	if packed.Counts(nil) != nil {
		t.Error("none is some")
	}
}

// A report that says that there are events and sends none takes no more memory than it did before these were made together.
func TestEventsThatAreNotThereTakeNoRoom(t *testing.T) {
	const states = 50_000
	all := map[string]*model.TaskState{}
	for i := range states {
		all[fmt.Sprint(i)] = &model.TaskState{Events: []*model.TaskEvent{nil, nil, nil, nil}}
	}
	form, err := packed.Reports([]*model.AllocUpdate{{ID: "a", TaskStates: all}})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	list, err := packed.ReadReports(form)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err != nil || len(list[0].TaskStates) != states {
		t.Fatalf("%d, %v", len(list), err)
	}
	if each := int(after.HeapAlloc-before.HeapAlloc) / states; each > 300 {
		t.Errorf("%d bytes for each state of %d", each, len(form)/states)
	}
	runtime.KeepAlive(list)
}

// What a list says that it has takes no room before it was read.
func TestWhatIsSaidToBeThereTakesNoRoom(t *testing.T) {
	const said = 1 << 20
	states := []byte{2, 1, 8, 0, 1, 'a', 0, 0, 0, 0, 0} // reports: one, of task states, of allocation a
	scored := []byte{1, 1, 0, 0, 1, 0x80}               // allocations: one, without a job, of a new template that has nothing in it
	scored = append(scored, make([]byte, 14)...)        // ids, names, indexes and times
	scored = append(scored, 1, 1, 0x80, 2, 0, 0)        // new metrics that have nothing in them, with one score, of a node without a name
	scored = append(scored, 0)                          // of scores that are new
	scored = append(scored, make([]byte, 8)...)         // their mean
	for name, form := range map[string][]byte{"reports": {2}, "allocations": {1}, "task states": states, "scores": scored} {
		form = append(binary.AppendUvarint(form, said), make([]byte, said)...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, reports := packed.ReadReports(form)
		_, allocs := packed.ReadAllocs(form, nil)
		runtime.ReadMemStats(&after)
		if reports == nil || allocs == nil {
			t.Errorf("%s: %v, %v", name, reports, allocs)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 40*said {
			t.Errorf("%s: %d bytes for %d", name, n, said)
		}
	}
}
