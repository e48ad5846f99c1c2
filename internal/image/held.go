package image

import (
	"cmp"
	"slices"
	"strings"
)

// Held lists what the store can give at once, without a registry: the names of images in registries, in full (index.docker.io/library/python:3.12), and the
// digests that they were resolved to. Those that were used last come first into the list, which has at most so many entries and is sorted. Images that came from
// files of the node are left out: their names are paths.
func (s *Store) Held(most int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	images := make([]*held, 0, len(s.images))
	for _, h := range s.images {
		images = append(images, h)
	}
	slices.SortFunc(images, func(a, b *held) int {
		return cmp.Or(b.Used.Compare(a.Used), strings.Compare(a.ID, b.ID))
	})
	var names []string
	for _, h := range images {
		var own []string
		for _, n := range h.Names {
			if p := s.names[n.Key]; p.id == h.ID && n.Stamp == "" && p.digest != "" {
				own = append(own, n.Key, p.digest)
			}
		}
		slices.Sort(own)
		for _, n := range slices.Compact(own) {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		if len(names) >= most {
			names = names[:most]
			break
		}
	}
	slices.Sort(names)
	return names
}
