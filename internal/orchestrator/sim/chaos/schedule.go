package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what goes wrong.
type Kind string

// Kinds of faults.
const (
	Crash      Kind = "crash"       // of a server, which comes back with what its disk has
	PowerLoss  Kind = "power loss"  // the same, and nobody is told
	Cut        Kind = "cut"         // of the link from Target to Peer, in this direction
	Isolate    Kind = "isolate"     // Target from everybody, in both directions
	Deaf       Kind = "deaf"        // Target from everybody in the direction to it: what it says is heard
	SlowLink   Kind = "slow link"   // from Target to Peer, by By
	SlowDisk   Kind = "slow disk"   // of Target: each write takes By
	FullDisk   Kind = "full disk"   // of Target
	ClockJump  Kind = "clock jump"  // Target's wall clock is off by By
	Transfer   Kind = "transfer"    // Target hands leadership on; it has no duration
	AgentStart Kind = "agent start" // the node agents on Target end, and come back with what they run
	// What follows happens to GPUs of the nodes on Target, in runs with devices only.
	NodeLoss   Kind = "node loss"   // Target is cut off for longer than its nodes may be silent
	GPUFailure Kind = "gpu failure" // one of each node is unhealthy
	GPUGone    Kind = "gpu gone"    // one of each node is not found
	GPUDivided Kind = "gpu divided" // those of each node that were offered whole become slots, whoever holds them
	// Amnesia is a crash after which the disk lacks what it had taken last. No cluster can live with that: it is there to show that the checks find it, and
	// in no schedule that a seed makes.
	Amnesia Kind = "amnesia"
)

// Leader stands for the server that leads when a fault begins.
const Leader = "leader"

// Everybody are all hosts but the target.
const Everybody = "everybody"

// Fault is one thing that goes wrong, and is well again after For.
type Fault struct {
	At, For time.Duration // since the start
	Kind    Kind
	Target  string
	Peer    string        // of Cut and SlowLink
	By      time.Duration // of SlowLink, SlowDisk and ClockJump
}

func (f Fault) String() string {
	s := fmt.Sprintf("%8.3fs %-11s %s", f.At.Seconds(), f.Kind, f.Target)
	if f.Peer != "" {
		s += " -> " + f.Peer
	}
	if f.By != 0 {
		s += fmt.Sprintf(" by %v", f.By)
	}
	if f.For != 0 {
		s += fmt.Sprintf(" for %v", f.For)
	}
	return s
}

// Schedule is what goes wrong in a run, in order of time.
type Schedule []Fault

func (s Schedule) String() string {
	var b strings.Builder
	for _, f := range s {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

// Shape is what a schedule is made for.
type Shape struct {
	Servers []string
	Nodes   []string      // hosts of node agents
	Clients []string      // hosts of clients
	Length  time.Duration // by its end everything is well again
	Every   time.Duration // between the beginnings of two faults, on average
	Only    []Kind        // nil = all kinds
	Devices bool          // also those that are about devices
}

// weights say how often a kind is chosen. Crashes and cuts of servers are what a cluster is for.
var weights = []struct {
	kind Kind
	n    int
}{
	{Crash, 4}, {PowerLoss, 3}, {Cut, 5}, {Isolate, 5}, {Deaf, 3}, {SlowLink, 3}, {SlowDisk, 3}, {FullDisk, 2}, {ClockJump, 2}, {Transfer, 4}, {AgentStart, 2},
}

// ofDevices are the weights of the kinds that are about devices.
var ofDevices = []struct {
	kind Kind
	n    int
}{{NodeLoss, 6}, {GPUFailure, 12}, {GPUGone, 8}, {GPUDivided, 8}}

// lost is how long a node is silent at least until it is given up.
const lost = 6 * time.Second

// Plan makes the schedule of a seed. Equal seeds and shapes give equal schedules.
func Plan(seed uint64, s Shape) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x706c616e))
	var kinds []Kind
	all := weights
	if s.Devices {
		all = slices.Concat(weights, ofDevices)
	}
	for _, w := range all {
		if s.Only == nil || slices.Contains(s.Only, w.kind) {
			for range w.n {
				kinds = append(kinds, w.kind)
			}
		}
	}
	server := func() string {
		if r.IntN(3) == 0 { // it is the most rewarding one
			return Leader
		}
		return pick(r, s.Servers)
	}
	var out Schedule
	for at := between(r, s.Every/2, s.Every); at < s.Length*3/4; at += between(r, s.Every/2, s.Every*3/2) {
		f := Fault{At: at, Kind: pick(r, kinds), Target: server()}
		// Most faults are about as long as an election takes, some much longer.
		f.For = between(r, 100*time.Millisecond, 3*time.Second)
		if r.IntN(5) == 0 {
			f.For *= 6
		}
		switch f.Kind {
		case Cut, SlowLink:
			f.Peer = pick(r, slices.Concat(s.Servers, s.Servers, s.Nodes, s.Clients))
			if f.Peer == f.Target {
				f.Peer = Everybody
			}
			if r.IntN(4) == 0 { // from outside to a server
				f.Target, f.Peer = pick(r, slices.Concat(s.Nodes, s.Clients)), server()
			}
			if f.Kind == SlowLink {
				f.By = between(r, 10*time.Millisecond, 800*time.Millisecond)
			}
		case SlowDisk:
			f.By = between(r, time.Millisecond, 700*time.Millisecond)
		case ClockJump:
			f.By = between(r, time.Second, 10*time.Minute)
			if r.IntN(2) == 0 {
				f.By = -f.By
			}
		case Transfer:
			f.Target, f.For = Leader, 0
		case NodeLoss:
			f.Target, f.For = pick(r, s.Nodes), lost+f.For
		case AgentStart, GPUFailure, GPUGone, GPUDivided:
			f.Target = pick(r, s.Nodes)
		}
		f.For = min(f.For, s.Length-f.At).Truncate(time.Millisecond)
		f.At, f.By = f.At.Truncate(time.Millisecond), f.By.Truncate(time.Millisecond)
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return out
}

// Flaps is a schedule in which leadership changes so many times, one after the other: handed on, or lost by a leader that is cut off, deaf, too slow or dead.
func Flaps(seed uint64, times int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x666c6170))
	var out Schedule
	at := time.Second
	for range times {
		f := Fault{At: at.Truncate(time.Millisecond), Kind: pick(r, []Kind{Transfer, Transfer, Transfer, Isolate, Deaf, SlowDisk, Crash}), Target: Leader}
		switch f.Kind {
		case Transfer:
		case SlowDisk:
			f.By, f.For = 400*time.Millisecond, 300*time.Millisecond
		default:
			f.For = between(r, 50*time.Millisecond, 1200*time.Millisecond).Truncate(time.Millisecond)
		}
		// The next one comes while the new leader takes over, or soon after.
		at += f.For + between(r, 5*time.Millisecond, 800*time.Millisecond)
		out = append(out, f)
	}
	return out
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// between is at least a and less than b.
func between(r *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(r.Int64N(int64(b-a)))
}
