package gateway_test

import (
	"context"
	"testing"

	"rockpool/internal/nomad"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/timeline"
)

// within has start run gateways whose cluster is in their own process.
var within bool

// neighbour is a cluster as an embedded orchestrator.
type neighbour struct{ *nomadtest.Cluster }

func (n neighbour) URL() string                  { return n.Cluster.URL }
func (n neighbour) Token() string                { return "" }
func (n neighbour) Timeline() *timeline.Recorder { return nil }
func (n neighbour) Inside() nomad.Inside         { return n.Cluster.Inside() }

func (n neighbour) Ready() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

func (n neighbour) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// What holds over connections holds without them.
func TestTheContractHoldsInsideAProcess(t *testing.T) {
	within = true
	defer func() { within = false }()
	t.Run("", func(t *testing.T) { // which waits for all of them
		for name, test := range map[string]func(*testing.T){
			"executions end with exactly one message": TestExecutionsEndWithExactlyOneMessage,
			"output beyond the limit":                 TestOutputBeyondTheLimitIsAnError,
			"an execution is consumed":                TestAnExecutionIsConsumedByTheFirstConnect,
			"input":                                   TestInputReachesTheProgram,
			"the time limit":                          TestTheTimeLimitIsToldAtOnceAndTheRunnerStays,
			"a program that ignores QUIT":             TestAProgramThatIgnoresQuitIsKilled,
			"a program that cannot be killed":         TestARunnerWhoseProgramCannotBeKilledIsDiscarded,
			"a client that closes":                    TestAClientThatClosesGetsItsCloseAndNothingElse,
			"a runner that is deleted":                TestARunnerDeletedDuringARun,
			"an environment that is deleted":          TestAnEnvironmentDeletedDuringARun,
			"inactivity":                              TestInactivityEndsARun,
			"deaths":                                  TestOutOfMemoryAndOtherDeathsDuringARun,
			"an orderly stop":                         TestAnOrderlyStopTellsItsSessions,
			"huge output":                             TestHugeOutputReachesASlowClientWhole,
			"a client that does not read":             TestAClientThatDoesNotReadHoldsTheProgramBackUntilItLeaves,
			"control messages":                        TestTheSubprotocolHasControlMessages,
			"files that are written":                  TestFilesAreDeletedThenWritten,
			"a large upload":                          TestALargeUploadGoesByAFile,
			"files that cannot be written":            TestWhatCannotBeWrittenIsNamed,
			"listings":                                TestListings,
			"downloads":                               TestDownloads,
			"many claims":                             TestFiftyClientsClaimTenRunners,
			"a claim's cost":                          TestAClaimCostsOneWrite,
			"a claim beside an evaluation":            TestAClaimOfARunnerThatIsBeingEvaluatedIsWrittenAllTheSame,
			"sizes of pools":                          TestPoolsFollowTheirSize,
			"an environment that is changed":          TestAChangedEnvironmentReplacesIdleAndDrainsUsedRunners,
			"a cluster out of reach":                  TestAClusterOutOfReachIsSaidSo,
			"a broken stream of events":               TestAfterABrokenStreamThePoolsAreCompared,
			"a runner that dies":                      TestADeadRunnerIsGoneAndReplaced,
			"an environment that cannot be placed":    TestAnEnvironmentThatCannotBePlacedLeavesTheOldOne,
		} {
			t.Run(name, test)
		}
	})
}
