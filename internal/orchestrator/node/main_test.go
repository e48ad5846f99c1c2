package node_test

import (
	"testing"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/packed/packedtest"
)

// becomeAgent makes this process an agent instead, where a test has started it as one.
var becomeAgent = func() {}

func TestMain(m *testing.M) {
	becomeAgent()
	goleak.VerifyTestMain(packedtest.Main{M: m})
}
