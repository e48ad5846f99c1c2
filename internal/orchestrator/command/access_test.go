package command_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// accessLog is one entry of each kind of access, in an order that works.
func accessLog() []any {
	return []any{
		&command.ACLPolicyUpsert{Now: 1, Policy: &model.ACLPolicy{Name: "p", Rules: "r"}},
		&command.ACLRoleUpsert{Now: 2, Fresh: true, Role: &model.ACLRole{ID: "r1", Name: "role", Policies: []string{"p"}}},
		&command.ACLBootstrap{Now: 3, Token: &model.ACLToken{AccessorID: "a0", SecretHash: "h0", Type: "management"}},
		&command.ACLTokenUpsert{Now: 4, Fresh: true, Token: &model.ACLToken{AccessorID: "a1", SecretHash: "h1", Type: "client", Roles: []string{"r1"}, Expires: 500}},
		&command.OneTimePut{Now: 5, Token: &model.OneTimeToken{SecretHash: "o1", AccessorID: "a1", Sealed: []byte{1}, Expires: 400}},
		&command.OneTimeTake{Now: 6, SecretHash: "o1"},
		&command.QuotaUpsert{Now: 7, Quota: &model.Quota{Name: "q", MemoryMB: 100, Devices: map[string]int{"gpu": 1}}},
		&command.NamespaceUpsert{Now: 8, Namespace: &model.Namespace{Name: "n", Quota: "q"}},
		&command.NodePoolUpsert{Now: 9, Pool: &model.NodePool{Name: "pool", Scheduler: &model.PoolScheduling{Algorithm: "spread"}}},
		&command.RootKeyPut{Now: 10, Key: &model.RootKey{ID: "k1", Wrapped: []byte{2}}, Absent: true},
		&command.VariableChange{Now: 11, Change: &state.VariableChange{Op: state.VariableSet, Namespace: "n", Path: "a/b", Data: []byte{3, 4}, KeyID: "k1", CAS: true}},
		&command.VariableChange{Now: 12, Change: &state.VariableChange{Op: state.VariableAcquire, Namespace: "n", Path: "a/b",
			NewLock: &model.VariableLock{ID: "l", TTL: 100, Delay: 50}}},
		&command.RootKeyPut{Now: 13, Key: &model.RootKey{ID: "k2", Wrapped: []byte{5}}, Full: true},
		&command.Reseal{Now: 14, KeyID: "k1", List: []*state.Resealed{{Namespace: "n", Path: "a/b", AtIndex: 12, Data: []byte{6, 7, 8}, KeyID: "k2"}}},
		&command.RootKeyDelete{Now: 15, ID: "k1"},
		&command.NodeRegister{Now: 16, Node: &model.Node{ID: "n1", SecretID: "s", Datacenter: "dc1", Status: model.NodeReady, NodePool: "made"}},
		&command.ServiceUpsert{Now: 17, NodeID: "n1", Allocs: []*model.AllocServices{{AllocID: "none"}}},
		&command.ServiceDelete{Now: 18, Namespace: "n", Name: "s", ID: "i"},
		&command.AccessExpire{Now: 600, Limit: 10},
		&command.ACLRoleDelete{Now: 601, ID: "r1"},
		&command.ACLPolicyDelete{Now: 602, Name: "p"},
		&command.ACLTokenDelete{Now: 603, Accessor: "a0"},
		&command.VariableChange{Now: 604, Change: &state.VariableChange{Op: state.VariableDelete, Namespace: "n", Path: "a/b"}},
		&command.NamespaceDelete{Now: 605, Name: "n"},
		&command.QuotaDelete{Now: 606, Name: "q"},
		&command.NodePoolDelete{Now: 607, Name: "pool"},
	}
}

func TestEntriesOfAccessAreWhatIsOnDisks(t *testing.T) {
	var got strings.Builder
	s, again := state.New(), state.New()
	for i, e := range accessLog() {
		data, err := command.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%T %s\n", e, hex.EncodeToString(data))
		if r := apply(t, s, uint64(i+1), e); r != nil {
			if err, ok := r.(error); ok {
				t.Errorf("entry %d: %v", i+1, err)
			}
		}
		apply(t, again, uint64(i+1), accessLog()[i])
		var snap bytes.Buffer
		if err := again.Snapshot().Persist(&snap); err != nil {
			t.Fatal(err)
		}
		again = state.New()
		if err := again.Restore(&snap); err != nil {
			t.Fatal(err)
		}
		a, _ := s.Hash()
		if b, _ := again.Hash(); a != b {
			t.Fatalf("after entry %d the restored hash differs", i+1)
		}
	}
	const file = "testdata/access.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("entries differ from %s: old logs could not be read any more\n%s", file, got.String())
	}
}

// The usage that is kept is held against the sum over all allocations and variables, over whatever happens, and across snapshots.
func TestUsageIsTheSumOfWhatThereIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := state.New()
		index := uint64(0)
		do := func(e any) {
			index++
			data, err := command.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := command.Apply(s, index, data); err != nil {
				t.Fatal(err)
			}
		}
		namespaces := []string{"default", "a", "b"}
		do(&command.QuotaUpsert{Quota: &model.Quota{Name: "q"}})
		do(&command.NamespaceUpsert{Namespace: &model.Namespace{Name: "a", Quota: "q"}})
		do(&command.NamespaceUpsert{Namespace: &model.Namespace{Name: "b", Quota: "q"}})
		do(&command.NodeRegister{Node: &model.Node{ID: "n1", Status: model.NodeReady}})
		pick := func(label string, from []string) string { return rapid.SampledFrom(from).Draw(t, label) }
		ids := []string{"a0", "a1", "a2", "a3", "a4", "a5"}
		placed := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			ns, job := pick("namespace", namespaces), pick("job", []string{"x", "y"})
			switch pick("step", []string{"register", "place", "report", "stop", "purge", "variable", "drop", "collect", "restore", "move"}) {
			case "register":
				j := testJob(job)
				j.Namespace, j.TaskGroups[0].Tasks[0].Resources.Cores = ns, rapid.IntRange(0, 2).Draw(t, "cores")
				do(&command.JobRegister{Job: j})
			case "place":
				if j := s.Snapshot().Job(nil, ns, job); j != nil && placed < len(ids) {
					do(&command.PlanResults{Plans: []*state.Placement{{Namespace: ns, JobID: job, JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex,
						Place: []*model.Allocation{{ID: ids[placed], Namespace: ns, NodeID: "n1", JobID: job, TaskGroup: "g", DesiredStatus: "run", ClientStatus: "pending",
							Resources: model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"t": {CPU: rapid.IntRange(0, 9).Draw(t, "cpu"), MemoryMB: 10,
								MemoryMaxMB: rapid.IntRange(0, 20).Draw(t, "max"), Devices: []model.AllocatedDevice{{Vendor: "v", Type: "gpu", Name: "n", DeviceIDs: []string{"1", "2"}}}}}}}}}}})
					placed++
				}
			case "report":
				do(&command.AllocUpdates{NodeID: "n1", Allocs: []*model.AllocUpdate{{ID: pick("alloc", ids), ClientStatus: pick("status", []string{"running", "complete", "failed"})}}})
			case "stop":
				do(&command.AllocStop{AllocID: pick("alloc", ids)})
			case "purge":
				do(&command.JobDeregister{Namespace: ns, JobID: job, Purge: true})
			case "variable":
				do(&command.VariableChange{Change: &state.VariableChange{Op: state.VariableSet, Namespace: ns, Path: job, Data: make([]byte, rapid.IntRange(0, 9).Draw(t, "size"))}})
			case "drop":
				do(&command.VariableChange{Change: &state.VariableChange{Op: state.VariableDelete, Namespace: ns, Path: job}})
			case "collect":
				do(&command.Collect{Allocs: ids})
			case "restore":
				var snap bytes.Buffer
				if err := s.Snapshot().Persist(&snap); err != nil {
					t.Fatal(err)
				}
				s = state.New()
				if err := s.Restore(&snap); err != nil {
					t.Fatal(err)
				}
			case "move":
				do(&command.NamespaceUpsert{Namespace: &model.Namespace{Name: "b", Quota: pick("quota", []string{"", "q"})}})
			}
			snap := s.Snapshot()
			var quota model.QuotaUsage
			for _, ns := range namespaces {
				var want model.QuotaUsage
				for a := range snap.Allocs(nil, "") {
					if a.Namespace == ns {
						want.Add(a.QuotaUsage(a.Job), 1)
					}
				}
				for v := range snap.Variables(nil, ns, "") {
					want.VariableBytes += len(v.Data)
				}
				got := snap.NamespaceUsage(nil, ns)
				if len(want.Devices) == 0 {
					want.Devices = nil
				}
				if len(got.Devices) == 0 {
					got.Devices = nil
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("namespace %s: %s", ns, diff)
				}
				if n := snap.Namespace(nil, ns); n.Quota == "q" {
					quota.Add(want, 1)
				}
			}
			if _, used := snap.NamespaceQuota("a"); used.CPU != quota.CPU || used.VariableBytes != quota.VariableBytes || used.Cores != quota.Cores {
				t.Fatalf("the quota's usage is %+v, want %+v", used, quota)
			}
		}
	})
}

// A lock whose time is over is nobody's, whether or not the entry that removes it has come; its holder learns that, and its successor waits for the delay.
func TestALockEndsByTheClockOfTheLog(t *testing.T) {
	s := state.New()
	index := uint64(0)
	do := func(now int64, c state.VariableChange) state.VariableChanged {
		t.Helper()
		index++
		c.Namespace, c.Path = "default", "x"
		return apply(t, s, index, &command.VariableChange{Now: now, Change: &c}).(state.VariableChanged)
	}
	lock := func(id string) *model.VariableLock { return &model.VariableLock{ID: id, TTL: 100, Delay: 50} }
	if r := do(0, state.VariableChange{Op: state.VariableAcquire, NewLock: lock("one")}); r.Conflict != nil {
		t.Fatal("it is free")
	}
	if r := do(60, state.VariableChange{Op: state.VariableRenew, LockID: "one"}); r.Conflict != nil || r.Variable.Lock.Expires != 160 {
		t.Fatalf("%+v", r)
	}
	for now, free := range map[int64]bool{159: false, 160: false, 209: false} {
		if r := do(now, state.VariableChange{Op: state.VariableAcquire, NewLock: lock("two")}); (r.Conflict == nil) != free {
			t.Errorf("at %d free is %v", now, r.Conflict == nil)
		}
	}
	if r := do(161, state.VariableChange{Op: state.VariableSet, LockID: "one", Data: []byte{1}}); r.Conflict == nil {
		t.Error("a holder whose lock ended wrote")
	}
	if r := do(161, state.VariableChange{Op: state.VariableRenew, LockID: "one"}); r.Conflict == nil {
		t.Error("a lock that ended was renewed")
	}
	if r := do(161, state.VariableChange{Op: state.VariableSet, Data: []byte{1}}); r.Conflict != nil {
		t.Error("an ended lock keeps others from writing")
	}
	if r := do(210, state.VariableChange{Op: state.VariableAcquire, NewLock: lock("two")}); r.Conflict != nil || r.Variable.Lock.ID != "two" {
		t.Errorf("after the delay: %+v", r)
	}
}

// What a node that is down or an allocation that ended offered is withdrawn in the same update.
func TestServicesEndWithTheirNode(t *testing.T) {
	s := state.New()
	for i, e := range log()[:3] {
		apply(t, s, uint64(i+1), e)
	}
	offer := &command.ServiceUpsert{NodeID: "n1", Allocs: []*model.AllocServices{{AllocID: "a1", Services: []*model.ServiceRegistration{{ID: "s", ServiceName: "web"}}}}}
	count := func() (n int) {
		for range s.Snapshot().Services(nil, "*") {
			n++
		}
		return n
	}
	apply(t, s, 4, offer)
	apply(t, s, 5, &command.ServiceUpsert{NodeID: "other", Allocs: []*model.AllocServices{{AllocID: "a1"}}})
	if count() != 1 {
		t.Fatal("another node withdrew it")
	}
	apply(t, s, 6, &command.NodeStatus{NodeID: "n1", Status: model.NodeDown})
	if count() != 0 {
		t.Error("the services of a node that is down are offered")
	}
	apply(t, s, 7, offer)
	apply(t, s, 8, &command.JobDeregister{Namespace: "default", JobID: "j1", Purge: true})
	if count() != 0 {
		t.Error("the services of a purged job are offered")
	}
	apply(t, s, 9, offer)
	if count() != 0 {
		t.Error("an allocation that is gone offers services")
	}
}
