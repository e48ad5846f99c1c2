package sim

// Held has, by node, the ids of the allocations that are starting or running on it.
func (f *Fleet) Held() map[string][]string {
	out := make(map[string][]string, len(f.nodes))
	for _, n := range f.nodes {
		n.mu.Lock()
		ids := []string{}
		for id, a := range n.allocs {
			if !a.dead {
				ids = append(ids, id)
			}
		}
		n.mu.Unlock()
		out[n.id] = ids
	}
	return out
}
