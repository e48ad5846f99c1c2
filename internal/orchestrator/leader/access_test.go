package leader_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// What ends does so by itself, root keys are renewed, and what an old key sealed is sealed anew in steps.
func TestAccessIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		kek, err := keyring.Ephemeral()
		if err != nil {
			t.Fatal(err)
		}
		do := func(e any) {
			t.Helper()
			if _, _, err := l.Apply(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		now := func() int64 { return time.Now().UnixNano() }
		first := ident.New()
		wrapped := kek.NewRoot(first)
		root, err := kek.Root(first, wrapped)
		if err != nil {
			t.Fatal(err)
		}
		do(&command.RootKeyPut{Now: now() - int64(29*24*time.Hour), Key: &model.RootKey{ID: first, Wrapped: wrapped}, Absent: true})
		const variables = 150
		for i := range variables {
			path := "v/" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			do(&command.VariableChange{Now: now(), Change: &state.VariableChange{
				Op: state.VariableSet, Namespace: "default", Path: path, Data: root.Seal([]byte(path), keyring.Place("default", path, first)), KeyID: first,
			}})
		}
		do(&command.VariableChange{Now: now(), Change: &state.VariableChange{
			Op: state.VariableAcquire, Namespace: "default", Path: "v/aa", NewLock: &model.VariableLock{ID: "l", TTL: int64(10 * time.Second), Delay: int64(5 * time.Second)},
		}})
		do(&command.ACLTokenUpsert{Now: now(), Fresh: true, Token: &model.ACLToken{AccessorID: "brief", SecretHash: "h", Type: "client", Expires: now() + int64(time.Minute)}})
		do(&command.OneTimePut{Now: now(), Token: &model.OneTimeToken{SecretHash: "o", AccessorID: "brief", Expires: now() + int64(2*time.Minute)}})

		ctx, cancel := context.WithCancel(context.Background())
		leads := make(chan bool, 1)
		leads <- true
		srv := leader.New(leader.Config{Store: l.store, Log: l, KEK: kek, Namespaces: []string{"", "default", "mine"}})
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Run(ctx, leads) })
		snap := func() *state.Snapshot { synctest.Wait(); return l.store.Snapshot() }
		if snap().Namespace(nil, "mine") == nil {
			t.Error("the configured namespace is missing")
		}
		time.Sleep(14 * time.Second)
		if snap().Variable(nil, "default", "v/aa").Lock == nil {
			t.Error("the lock is gone within its delay")
		}
		time.Sleep(3 * time.Second)
		if snap().Variable(nil, "default", "v/aa").Lock != nil {
			t.Error("the lock is there after its delay")
		}
		time.Sleep(time.Minute)
		if snap().ACLToken(nil, "brief") != nil || snap().OneTimeToken("o") == nil {
			t.Error("only the token's time is over")
		}
		time.Sleep(2 * time.Minute)
		if snap().OneTimeToken("o") != nil {
			t.Error("the one-time token's time is over")
		}
		time.Sleep(25 * time.Hour)
		active := snap().ActiveKey()
		if active == nil || active.ID == first {
			t.Fatal("the root key was not renewed")
		}
		if snap().RootKey(first).State != model.KeyInactive {
			t.Error("a renewal without full seals nothing anew")
		}
		second := ident.New()
		do(&command.RootKeyPut{Now: now(), Key: &model.RootKey{ID: second, Wrapped: kek.NewRoot(second)}, Full: true})
		time.Sleep(20 * time.Second)
		s := snap()
		if s.RootKey(first).State != model.KeyInactive || s.RootKey(active.ID).State != model.KeyInactive {
			t.Error("the rekeying did not end")
		}
		key, err := kek.Root(second, s.RootKey(second).Wrapped)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for v := range s.Variables(nil, "*", "") {
			plain, err := key.Open(v.Data, keyring.Place(v.Namespace, v.Path, second))
			if v.KeyID != second || err != nil || string(plain) != v.Path {
				t.Fatalf("%s is sealed by %s: %v", v.Path, v.KeyID, err)
			}
			n++
		}
		if n != variables {
			t.Errorf("%d variables", n)
		}
		cancel()
		wg.Wait()
	})
}
