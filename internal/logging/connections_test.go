package logging_test

import (
	"bytes"
	"strings"
	"testing"

	"rockpool/internal/logging"
)

func TestWhatAConnectionFailedOfIsForThoseWhoDebug(t *testing.T) {
	for level, want := range map[string]bool{"debug": true, "info": false} {
		var out bytes.Buffer
		l, err := logging.New(&out, level, logging.Text)
		if err != nil {
			t.Fatal(err)
		}
		logging.Connections(l).Print("http: TLS handshake error\n")
		if got := strings.Contains(out.String(), `error="http: TLS handshake error"`); got != want {
			t.Errorf("at %s it wrote %q", level, out.String())
		}
	}
}
