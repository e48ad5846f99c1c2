package command

// Name is what an encoded entry is called in figures; "unknown" for one that this program does not know.
func Name(data []byte) string {
	if len(data) > 0 {
		if r, ok := byTag[data[0]]; ok {
			return r.Type.Name()
		}
	}
	return "unknown"
}
