package fault_test

import (
	"errors"
	"testing"

	"rockpool/internal/fault"
)

func TestATextIsSaidOnce(t *testing.T) {
	cause := errors.New("why")
	for want, err := range map[string]error{
		"why":       fault.Wrap(fault.Invalid, cause, "%v", cause),
		"what: why": fault.Wrap(fault.Invalid, cause, "what"),
		"what":      fault.New(fault.Invalid, "what"),
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}
