package leader

import (
	"context"
	"fmt"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

const (
	keyLife     = 30 * 24 * time.Hour // of a root key before the next one seals
	expireStep  = 256                 // tokens and locks ended by one entry
	resealStep  = 64                  // variables sealed anew by one entry
	accessPause = time.Second         // between two looks
	accessBound = 10 * time.Second    // of one entry
)

// ensureNamespaces makes the namespaces that the configuration names.
func (t *term) ensureNamespaces(ctx context.Context) error {
	for _, name := range t.cfg.Namespaces {
		if name == "" || t.cfg.Store.Snapshot().Namespace(nil, name) != nil {
			continue
		}
		if _, err := t.propose(ctx, &command.NamespaceUpsert{
			Now: time.Now().UnixNano(), Namespace: &model.Namespace{Name: name, Description: "made by the configuration"},
		}); err != nil {
			return fmt.Errorf("make namespace %q: %w", name, err)
		}
	}
	return nil
}

func (t *term) propose(ctx context.Context, entry any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, accessBound)
	defer cancel()
	result, _, err := t.cfg.Log.Apply(ctx, entry)
	return result, err
}

// keepAccess ends tokens and locks whose time is over, and sees to root keys. What has ended is refused without it too: it only removes.
func (t *term) keepAccess(ctx context.Context) error {
	for {
		w := state.NewWatch()
		entry, next := accessDue(t.cfg.Store.Snapshot(), w, time.Now(), t.cfg.KEK)
		if entry != nil {
			if _, err := t.propose(ctx, entry); err != nil && ctx.Err() == nil {
				t.cfg.Logger.WithField("error", err.Error()).Warn("access could not be kept up to date")
			}
		} else {
			wctx, cancel := context.WithDeadline(ctx, next)
			_ = w.WatchCtx(wctx)
			cancel()
		}
		pause := time.NewTimer(accessPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil
		}
	}
}

// accessDue is the entry that is due now, or nil and when the next one will be if nothing changes.
func accessDue(s *state.Snapshot, w state.Watch, now time.Time, kek *keyring.Key) (entry any, next time.Time) {
	soonest := now.Add(time.Hour).UnixNano()
	for tok := range s.ACLTokens(w, "") {
		if tok.Expires != 0 {
			soonest = min(soonest, tok.Expires)
		}
	}
	for o := range s.OneTimeTokens(w) {
		soonest = min(soonest, o.Expires)
	}
	for v := range s.Variables(w, "*", "") {
		if v.Lock != nil {
			soonest = min(soonest, v.Lock.Expires+v.Lock.Delay)
		}
	}
	if soonest <= now.UnixNano() {
		return &command.AccessExpire{Now: now.UnixNano(), Limit: expireStep}, now
	}
	if kek == nil {
		return nil, time.Unix(0, soonest)
	}
	for k := range s.RootKeys(w) {
		switch k.State {
		case model.KeyActive:
			old := k.CreateTime + int64(keyLife)
			if old <= now.UnixNano() {
				id := ident.New()
				return &command.RootKeyPut{Now: now.UnixNano(), Key: &model.RootKey{ID: id, Wrapped: kek.NewRoot(id)}}, now
			}
			soonest = min(soonest, old)
		case model.KeyRekeying:
			if e := reseal(s, k, now, kek); e != nil {
				return e, now
			}
		}
	}
	return nil, time.Unix(0, soonest)
}

// reseal seals the next few variables of an old key with the active one. nil = a key is not at hand, and the operator has to see to it.
func reseal(s *state.Snapshot, old *model.RootKey, now time.Time, kek *keyring.Key) any {
	active := s.ActiveKey()
	if active == nil {
		return nil
	}
	from, err := kek.Root(old.ID, old.Wrapped)
	if err != nil {
		return nil
	}
	to, err := kek.Root(active.ID, active.Wrapped)
	if err != nil {
		return nil
	}
	e := &command.Reseal{Now: now.UnixNano(), KeyID: old.ID}
	broken := false
	for v := range s.VariablesByKey(old.ID) {
		plain, err := from.Open(v.Data, keyring.Place(v.Namespace, v.Path, old.ID))
		if err != nil {
			broken = true // it stays as it is, and keeps the old key from being removed
			continue
		}
		e.List = append(e.List, &state.Resealed{
			Namespace: v.Namespace, Path: v.Path, AtIndex: v.ModifyIndex, KeyID: active.ID,
			Data: to.Seal(plain, keyring.Place(v.Namespace, v.Path, active.ID)),
		})
		if len(e.List) == resealStep {
			break
		}
	}
	if broken && len(e.List) == 0 {
		return nil
	}
	return e
}
