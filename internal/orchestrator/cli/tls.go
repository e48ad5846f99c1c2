package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"rockpool/internal/certs"
)

var tlsCommands = []Command{
	{Path: "tls ca create", Setup: tlsCA, Short: "Make a certificate authority for a cluster",
		Long: "Make a certificate authority for a cluster: its certificate for every agent, and its key, which none of them needs."},
	{Path: "tls cert create", Setup: tlsCert, Short: "Make a certificate for a server, a node or a person"},
}

const day = 24 * time.Hour

func tlsCA(f *pflag.FlagSet) func(context.Context, *Call) error {
	dir := f.String("dir", ".", "directory of the files")
	name := f.String("common-name", "", "of the authority")
	domain := f.String("domain", "rockpool", "first part of the files' names")
	days := f.Int("days", int(certs.CALifetime/day), "that it is valid for")
	return func(_ context.Context, c *Call) error {
		if *days < 1 {
			return errors.New("-days: at least 1 is needed")
		}
		pair, err := certs.CreateCA(*name, time.Now(), time.Duration(*days)*day)
		if err != nil {
			return err
		}
		return c.keep(*dir, *domain+"-agent-ca", pair)
	}
}

// keep writes a certificate and its key. It replaces no file: what a key was used for would end.
func (c *Call) keep(dir, name string, p certs.Pair) error {
	for _, file := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{name + "-key.pem", p.Key, 0o600}, {name + ".pem", p.Cert, 0o644}} {
		path := filepath.Join(dir, file.name)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, file.mode)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s is there already: move it away or name another directory with -dir", path)
		}
		if err != nil {
			return err
		}
		_, err = f.Write(file.data)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		fmt.Fprintf(c.Out, "%s written\n", path)
	}
	return nil
}

func tlsCert(f *pflag.FlagSet) func(context.Context, *Call) error {
	server := f.Bool("server", false, "for a server")
	client := f.Bool("client", false, "for a node")
	person := f.Bool("cli", false, "for a person or a program at the HTTP API")
	region := f.String("region", "global", "of the cluster")
	names := f.StringArray("additional-dnsname", nil, "another name of the machine")
	addresses := f.StringArray("additional-ipaddress", nil, "another address of the machine")
	ca := f.String("ca", "rockpool-agent-ca.pem", "the authority's certificate")
	key := f.String("key", "rockpool-agent-ca-key.pem", "the authority's key")
	dir := f.String("dir", ".", "directory of the files")
	days := f.Int("days", int(certs.CertLifetime/day), "that it is valid for, at most as long as the authority")
	name := f.String("name", "", "first part of the files' names (default: region and role)")
	return func(_ context.Context, c *Call) error {
		r := certs.Request{Region: *region, Names: *names, Lifetime: time.Duration(*days) * day}
		chosen := 0
		for role, on := range map[certs.Role]bool{certs.Server: *server, certs.Client: *client, certs.CLI: *person} {
			if on {
				r.Role = role
				chosen++
			}
		}
		if chosen != 1 {
			return errors.New("say one of -server, -client and -cli")
		}
		if *days < 1 {
			return errors.New("-days: at least 1 is needed")
		}
		for _, a := range *addresses {
			ip := net.ParseIP(strings.TrimSpace(a))
			if ip == nil {
				return fmt.Errorf("-additional-ipaddress: %q is not an IP address", a)
			}
			r.IPs = append(r.IPs, ip)
		}
		var authority certs.Pair
		var err error
		if authority.Cert, err = os.ReadFile(*ca); err != nil {
			return fmt.Errorf("read the authority: %w: make one with \"orchestrator tls ca create\", or name it with -ca and -key", err)
		}
		if authority.Key, err = os.ReadFile(*key); err != nil {
			return fmt.Errorf("read the authority's key: %w", err)
		}
		pair, err := certs.Create(authority, r, time.Now())
		if err != nil {
			return err
		}
		return c.keep(*dir, or(*name, *region+"-"+string(r.Role)+"-rockpool"), pair)
	}
}
