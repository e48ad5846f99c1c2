package state_test

import (
	"os"
	"testing"

	"rockpool/internal/orchestrator/model/modeltest"
)

func TestMain(m *testing.M) { os.Exit(modeltest.Main{M: m}.Run()) }
