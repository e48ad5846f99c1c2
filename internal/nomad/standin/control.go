package standin

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
)

// NoRoom says whether new jobs can be placed.
func (s *Server) NoRoom(b bool) { s.mu.Lock(); s.noRoom = b; s.mu.Unlock() }

// Deaf loses events.
func (s *Server) Deaf(b bool) { s.mu.Lock(); s.deaf = b; s.mu.Unlock() }

// Cut ends all event streams, as a server does that restarts.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subs {
		close(sub.cut)
		delete(s.subs, sub)
	}
}

// Restore sets the index back and forgets the events, as a restored snapshot may; streams stay open.
func (s *Server) Restore(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.buffer = index, nil
	for _, j := range s.jobs {
		j.JobModifyIndex, j.ModifyIndex = new(index), new(index)
	}
	for _, a := range s.allocs {
		a.ModifyIndex, a.CreateIndex = index, index
	}
}

// Frame sends a line as it is to all event streams.
func (s *Server) Frame(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send([]byte(line + "\n"))
}

// Subscribers is how many event streams are open.
func (s *Server) Subscribers() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.subs) }

// Jobs are the ids of all jobs with a prefix, sorted.
func (s *Server) Jobs(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id := range s.jobs {
		if strings.HasPrefix(id, prefix) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Job is a copy of one, nil if there is none.
func (s *Server) Job(id string) *api.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		return clone(j)
	}
	return nil
}

// Put stores a job that another program registered, as JSON, and starts it.
func (s *Server) Put(data []byte) error {
	var job api.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	job.JobModifyIndex, job.ModifyIndex, job.CreateIndex, job.Status, job.Stop, job.Version = new(s.index), new(s.index), new(s.index), new("pending"), new(false), new(uint64(0))
	s.jobs[*job.ID] = &job
	eval := &api.Evaluation{ID: ident.New(), JobID: *job.ID, Status: "pending"}
	s.evals[eval.ID] = eval
	s.publish("JobRegistered", event{"Job", *job.ID, map[string]any{"Job": &job}})
	s.place(&job, eval, true)
	return nil
}

// Remove takes a job away without a word.
func (s *Server) Remove(id string) {
	s.mu.Lock()
	s.index++
	a := s.allocOf(id)
	delete(s.jobs, id)
	if a != nil {
		delete(s.allocs, a.ID)
	}
	s.mu.Unlock()
	if a != nil && a.box != nil {
		a.box.stop()
	}
}

// End has a job's allocation end, and a job that is not rescheduled with it.
func (s *Server) End(jobID, status string, oom bool) {
	s.mu.Lock()
	a := s.allocOf(jobID)
	box := a.box
	a.box = nil
	killed := "false"
	if oom {
		killed = "true"
	}
	if status == "complete" {
		a.DesiredStatus = "stop"
	}
	s.update(a, status, &api.TaskState{State: "dead", Failed: status == "failed", FinishedAt: time.Now(), Events: []*api.TaskEvent{
		{Type: "Started"}, {Type: "Terminated", Details: map[string]string{"oom_killed": killed, "exit_code": "137"}}, {Type: "Not Restarting"},
	}})
	if j := s.jobs[jobID]; j != nil {
		if p := j.TaskGroups[0].ReschedulePolicy; p == nil || p.Unlimited == nil || !*p.Unlimited {
			j.Status = new("dead")
		} else {
			j.Status = new("pending")
		}
	}
	s.unblock()
	s.mu.Unlock()
	if box != nil {
		box.stop()
	}
}

// Stop marks a job as one that somebody has stopped.
func (s *Server) Stop(jobID string) { s.mu.Lock(); s.jobs[jobID].Stop = new(true); s.mu.Unlock() }

// Restart has a job's container come back under the same allocation, as a restart policy does.
func (s *Server) Restart(jobID string, oom bool) {
	s.mu.Lock()
	a := s.allocOf(jobID)
	box := a.box
	a.box = nil
	killed := "false"
	if oom {
		killed = "true"
	}
	events := []*api.TaskEvent{{Type: "Started"}, {Type: "Terminated", Details: map[string]string{"oom_killed": killed}}, {Type: "Restarting"}}
	s.update(a, "pending", &api.TaskState{State: "pending", Restarts: 1, Events: events})
	s.update(a, "running", &api.TaskState{State: "running", Restarts: 1, Events: append(events, &api.TaskEvent{Type: "Started"})})
	s.mu.Unlock()
	if box != nil {
		box.stop()
	}
}

// Reschedule replaces a job's allocation by another one.
func (s *Server) Reschedule(jobID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.allocOf(jobID)
	s.index++
	next := clone(old)
	next.ID, next.PreviousAllocation, next.CreateIndex, next.box = ident.New(), old.ID, s.index, nil
	s.allocs[next.ID] = next
	s.update(next, "running", &api.TaskState{State: "running"})
}

// Meta is that of a job's group config.
func (s *Server) Meta(id string) map[string]string {
	if j := s.Job(id); j != nil {
		return j.TaskGroups[1].Meta
	}
	return nil
}

// AllocID is that of a job's allocation.
func (s *Server) AllocID(jobID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.allocOf(jobID); a != nil {
		return a.ID
	}
	return ""
}

// Node is the id of the node that a job runs on, or waits for its start on; "" = none.
func (s *Server) Node(jobID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.allocOf(jobID); a != nil {
		return a.NodeID
	}
	return ""
}

func (s *Server) boxOf(jobID string) *container {
	b, _ := s.box(s.AllocID(jobID), "default-task")
	return b
}

// Root is a runner's root directory.
func (s *Server) Root(jobID string) string { return s.boxOf(jobID).root }

// Processes are those in a runner but for its first one.
func (s *Server) Processes(jobID string) []string { return s.boxOf(jobID).processes() }

// CPU is what all processes in a runner have used.
func (s *Server) CPU(jobID string) time.Duration { return s.boxOf(jobID).cpu() }

// Execs is how many are under way.
func (s *Server) Execs() int { return int(s.execs.Load()) }

// FIFOs are those that lie in a runner.
func (s *Server) FIFOs(jobID string) []string {
	found, _ := filepath.Glob(filepath.Join(s.Root(jobID), "tmp", "*"))
	return slices.DeleteFunc(found, func(name string) bool {
		info, err := os.Lstat(name)
		return err != nil || info.Mode()&os.ModeNamedPipe == 0
	})
}
