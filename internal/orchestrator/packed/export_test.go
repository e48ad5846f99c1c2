package packed

// Kept is how many values are remembered, and how many bytes their forms have.
func (s *shared[T]) Kept() (values, bytes int) {
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

// Shared is the type of what is shared.
type Shared[T any] = shared[T]

// Read and Changed are its methods.
func Read[T any](s *shared[T], form []byte) *T    { return s.read(form) }
func Changed[T any](s *shared[T]) ([]byte, error) { return s.changed() }
