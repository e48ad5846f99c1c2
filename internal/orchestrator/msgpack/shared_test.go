package msgpack_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/msgpack"
)

type value struct {
	Name string
	Of   map[string]int
}

func form(t testing.TB, v any) []byte {
	t.Helper()
	b, err := msgpack.Append(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEqualFormsAreOneValue(t *testing.T) {
	var s msgpack.Shared[value]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				want := value{fmt.Sprint(i), map[string]int{"n": i}}
				got := s.Decode(form(t, want))
				if diff := cmp.Diff(want, *got); diff != "" {
					t.Error(diff)
				}
				if again := s.Decode(form(t, want)); again != got {
					t.Errorf("%d is two values", i)
				}
			}
		})
	}
	wg.Wait()
	if changed, err := s.Changed(); changed != nil || err != nil {
		t.Errorf("%q was changed, %v", changed, err)
	}
	s.Decode(form(t, value{"7", map[string]int{"n": 7}})).Of["n"]++
	if changed, err := s.Changed(); string(changed) != string(form(t, value{"7", map[string]int{"n": 7}})) || err != nil {
		t.Errorf("%q was changed, %v", changed, err)
	}
}

// However many different values come, few are kept; and one that comes between them all the time stays.
func TestWhatIsSharedIsBounded(t *testing.T) {
	for _, length := range []int{0, 5000, 20000} {
		var s msgpack.Shared[value]
		often := form(t, value{Name: "often"})
		first := s.Decode(often)
		for i := range 3000 {
			s.Decode(form(t, value{Name: strings.Repeat("x", length) + fmt.Sprint(i)}))
			if s.Decode(often) != first {
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
	var s msgpack.Shared[value]
	for range 2 {
		func() {
			defer func() {
				if err, ok := recover().(error); !ok {
					t.Errorf("got %v", err)
				}
			}()
			s.Decode(form(t, "no value"))
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
