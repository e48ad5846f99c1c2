package orchestrator_test

import (
	"testing"

	"rockpool/internal/orchestrator"
)

func TestAVersionBeginsWithThreeNumbers(t *testing.T) {
	for release, want := range map[string]string{
		"": "0.0.0", "v1.2.3": "1.2.3", "1.2.3": "1.2.3", "v1.2.3-4-gabcdef-modified": "1.2.3-4-gabcdef-modified", "abcdef": "0.0.0+abcdef", "unknown": "0.0.0+unknown",
	} {
		if got := orchestrator.VersionOf(release); got != want {
			t.Errorf("version of %q: %q, want %q", release, got, want)
		}
	}
}
