package sandboxed

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
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
	archive := new(bytes.Buffer)
	w := tar.NewWriter(archive)
	for _, t := range texts {
		deletes = append(deletes, t.name)
		if err := w.WriteHeader(&tar.Header{Name: t.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(t.text))}); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		if _, err := io.WriteString(w, t.text); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("describe the network inside: %w", err)
	}
	if err := files.Apply(ctx, deletes, archive); err != nil {
		return fmt.Errorf("describe the network inside: %w", err)
	}
	return nil
}

type networkFile struct{ name, text string }

func describeNetwork(n *driver.Network) []networkFile {
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
	return []networkFile{{"/etc/hosts", hosts}, {"/etc/hostname", name + "\n"}, {"/etc/resolv.conf", resolv.String()}}
}
