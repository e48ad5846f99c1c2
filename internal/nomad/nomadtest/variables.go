package nomadtest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
)

// variables are kept with the cluster's lock.
type variables struct {
	byPath  map[string]*variable
	noLocks bool
	refused bool
}

type variable struct {
	api.Variable
	expires, free time.Time // of its lock, which is held until the first and keeps others out until the second
}

// NoLocks has the cluster behave like a Nomad before 1.7, which does not know what a lock on a variable is.
func (c *Cluster) NoLocks() { c.mu.Lock(); c.vars.noLocks = true; c.mu.Unlock() }

// NoVariables has the token lack all rights on variables.
func (c *Cluster) NoVariables() { c.mu.Lock(); c.vars.refused = true; c.mu.Unlock() }

// Variables are the paths of all variables, and whether each is locked.
func (c *Cluster) Variables() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]bool{}
	for path, v := range c.vars.byPath {
		all[path] = v.locked() != nil
	}
	return all
}

// Variable is what a variable holds; nil = there is none.
func (c *Cluster) Variable(path string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.vars.byPath[path]; v != nil {
		return v.Items
	}
	return nil
}

func (v *variable) locked() *api.VariableLock {
	if v.Lock == nil || time.Now().After(v.expires) {
		return nil
	}
	return v.Lock
}

func (v *variable) wire() *api.Variable {
	out := v.Variable
	out.Lock = v.locked()
	return &out
}

func (c *Cluster) variableRoutes(handle func(string, func(http.ResponseWriter, *http.Request))) {
	c.vars.byPath = map[string]*variable{}
	locked := func(h func(w http.ResponseWriter, r *http.Request) (int, any)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			status, body := http.StatusForbidden, any("Permission denied")
			if !c.vars.refused {
				status, body = h(w, r)
			}
			index := c.index
			c.mu.Unlock()
			if text, ok := body.(string); ok {
				http.Error(w, text, status)
				return
			}
			w.Header().Set("X-Nomad-Index", strconv.FormatUint(index, 10))
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(body)
		}
	}
	handle("GET /v1/vars", locked(func(_ http.ResponseWriter, r *http.Request) (int, any) {
		list := []*api.VariableMetadata{}
		for path, v := range c.vars.byPath {
			if strings.HasPrefix(path, r.URL.Query().Get("prefix")) {
				list = append(list, v.wire().Metadata())
				list[len(list)-1].Lock = v.locked()
			}
		}
		return http.StatusOK, list
	}))
	handle("GET /v1/var/{path...}", locked(func(_ http.ResponseWriter, r *http.Request) (int, any) {
		if v := c.vars.byPath[r.PathValue("path")]; v != nil {
			return http.StatusOK, v.wire()
		}
		return http.StatusNotFound, "variable not found"
	}))
	handle("PUT /v1/var/{path...}", locked(c.putVariable))
	handle("DELETE /v1/var/{path...}", locked(func(_ http.ResponseWriter, r *http.Request) (int, any) {
		path := r.PathValue("path")
		v := c.vars.byPath[path]
		if v == nil {
			return http.StatusNoContent, nil
		}
		if cas := r.URL.Query().Get("cas"); v.locked() != nil || (cas != "" && cas != strconv.FormatUint(v.ModifyIndex, 10)) {
			return http.StatusConflict, v.wire()
		}
		c.index++
		delete(c.vars.byPath, path)
		return http.StatusNoContent, nil
	}))
}

// putVariable writes one or works on its lock. The lock of the cluster is held.
func (c *Cluster) putVariable(_ http.ResponseWriter, r *http.Request) (int, any) {
	var in api.Variable
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return http.StatusBadRequest, err.Error()
	}
	q, path := r.URL.Query(), r.PathValue("path")
	v := c.vars.byPath[path]
	mine := v != nil && v.locked() != nil && in.Lock != nil && in.Lock.ID == v.Lock.ID
	switch {
	case q.Has("lock-renew") && !c.vars.noLocks:
		if !mine {
			return http.StatusConflict, v
		}
		ttl, _ := time.ParseDuration(v.Lock.TTL)
		v.expires = time.Now().Add(ttl)
		return http.StatusOK, v.Metadata()
	case q.Has("lock-release") && !c.vars.noLocks:
		if !mine {
			return http.StatusConflict, v
		}
		c.index++
		v.Lock, v.free, v.ModifyIndex = nil, time.Time{}, c.index
		return http.StatusOK, v.wire()
	case v != nil && (v.locked() != nil || time.Now().Before(v.free)) && !mine && !c.vars.noLocks:
		return http.StatusConflict, v.wire()
	}
	if cas := q.Get("cas"); cas != "" {
		at := uint64(0)
		if v != nil {
			at = v.ModifyIndex
		}
		if cas != strconv.FormatUint(at, 10) {
			conflict := &api.Variable{Path: path}
			if v != nil {
				conflict = v.wire()
			}
			return http.StatusConflict, conflict
		}
	}
	if len(in.Items) == 0 {
		return http.StatusBadRequest, "variable missing required Items object"
	}
	c.index++
	if v == nil {
		v = &variable{Variable: api.Variable{Path: path, CreateIndex: c.index}}
		c.vars.byPath[path] = v
	}
	v.Items, v.ModifyIndex = in.Items, c.index
	if q.Has("lock-acquire") && !c.vars.noLocks {
		ttl, err := time.ParseDuration(in.Lock.TTL)
		delay, delayErr := time.ParseDuration(in.Lock.LockDelay)
		if err != nil || delayErr != nil || ttl < 10*time.Second || delay <= 0 {
			return http.StatusBadRequest, "the lock's times are wrong"
		}
		v.Lock = &api.VariableLock{ID: ident.New(), TTL: in.Lock.TTL, LockDelay: in.Lock.LockDelay}
		v.expires = time.Now().Add(ttl)
		v.free = v.expires.Add(delay)
	}
	return http.StatusOK, v.wire()
}

// allocationRoutes are those of a single job.
func (c *Cluster) allocationRoutes(handle func(string, func(http.ResponseWriter, *http.Request))) {
	handle("GET /v1/job/{id}/allocations", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		list := []Alloc{}
		if a := c.allocs[r.PathValue("id")]; a != nil {
			list = append(list, *a)
			list[0].AllocatedResources = nil
		}
		c.mu.Unlock()
		c.answer(w, list)
	})
	handle("GET /v1/allocation/{id}", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		var found *Alloc
		for _, a := range c.allocs {
			if a.ID == r.PathValue("id") {
				found = new(*a)
			}
		}
		c.mu.Unlock()
		if found == nil {
			http.Error(w, "alloc not found", http.StatusNotFound)
			return
		}
		c.answer(w, found)
	})
}
