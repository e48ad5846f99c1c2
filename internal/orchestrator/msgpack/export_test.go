package msgpack

// Kept is how many values are remembered, and how many bytes their forms have.
func (s *Shared[T]) Kept() (values, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, generation := range []map[string]*T{s.old, s.young} {
		values += len(generation)
		for form := range generation {
			bytes += len(form)
		}
	}
	return values, bytes
}
