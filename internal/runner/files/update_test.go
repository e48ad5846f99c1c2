package files_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner/files"
)

func TestABodyThatIsTooLargeKeepsItsReason(t *testing.T) {
	body := http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(`{"copy":[{"path":"a","content":"aaaa"}]}`)), 20)
	_, err := files.Read(body, time.Time{}, nil)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); !ok || tooLarge.Limit != 20 || !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}
