package plan_test

import (
	"os"
	"testing"

	"rockpool/internal/orchestrator/packed/packedtest"
)

func TestMain(m *testing.M) { os.Exit(packedtest.Main{M: m}.Run()) }
