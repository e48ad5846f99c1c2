package sandboxed

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/driver"
)

// hostnameInside is that of a sandbox whose group gives none.
const hostnameInside = "runner"

// introduce tells the inside of its network: names, and who resolves them. What the image has there says nothing about it, and may be a link.
func introduce(ctx context.Context, files driver.Files, n *driver.Network) error {
	if n == nil {
		return nil
	}
	texts := describeNetwork(n)
	var deletes []string
	for _, t := range texts {
		deletes = append(deletes, t.name)
	}
	if err := put(ctx, files, deletes, texts); err != nil {
		return fmt.Errorf("describe the network inside: %w", err)
	}
	return nil
}

// furnish puts the task's own files inside, with the directories that they are in.
func furnish(ctx context.Context, files driver.Files, c *config, cfg driver.TaskConfig) error {
	var entries []insideFile
	made := map[string]int64{} // modes of directories
	if len(c.argv) > 0 {       // what only waits has nobody who would look for them
		made["local"], made["secrets"], made["alloc"], made["alloc/data"] = 0o777, 0o777, 0o755, 0o777
	}
	if cfg.AllocDir != "" {
		delete(made, "alloc/data") // it is there, and what is mounted there has a mode of its own
	}
	if len(made)+len(cfg.Files) == 0 {
		return nil
	}
	for _, f := range cfg.Files {
		for dir := path.Dir(f.Path); dir != "." && made[dir] == 0; dir = path.Dir(dir) {
			made[dir] = 0o755
		}
		entries = append(entries, insideFile{"/" + f.Path, string(f.Data), f.Mode})
	}
	for _, dir := range slices.Backward(slices.Sorted(maps.Keys(made))) { // each before what is in it
		entries = slices.Insert(entries, 0, insideFile{"/" + dir + "/", "", made[dir]})
	}
	if err := put(ctx, files, nil, entries); err != nil {
		return fmt.Errorf("put the task's files inside: %w", err)
	}
	return nil
}

// put writes files inside, after the deletes. A name that ends with a slash is a directory.
func put(ctx context.Context, files driver.Files, deletes []string, entries []insideFile) error {
	archive := new(bytes.Buffer)
	w := tar.NewWriter(archive)
	for _, t := range entries {
		head := &tar.Header{Name: t.name, Typeflag: tar.TypeReg, Mode: t.mode, Size: int64(len(t.text))}
		if strings.HasSuffix(t.name, "/") {
			head.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(head); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		if _, err := io.WriteString(w, t.text); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return files.Apply(ctx, deletes, archive)
}

type insideFile struct {
	name, text string
	mode       int64
}

func describeNetwork(n *driver.Network) []insideFile {
	name := cmp.Or(n.Hostname, hostnameInside)
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if n.Address != "" {
		hosts += n.Address + " " + name + "\n"
	}
	var resolv strings.Builder
	for _, s := range n.Nameservers {
		resolv.WriteString("nameserver " + s + "\n")
	}
	if len(n.Searches) > 0 {
		resolv.WriteString("search " + strings.Join(n.Searches, " ") + "\n")
	}
	if len(n.Options) > 0 {
		resolv.WriteString("options " + strings.Join(n.Options, " ") + "\n")
	}
	return []insideFile{{"/etc/hosts", hosts, 0o644}, {"/etc/hostname", name + "\n", 0o644}, {"/etc/resolv.conf", resolv.String(), 0o644}}
}
