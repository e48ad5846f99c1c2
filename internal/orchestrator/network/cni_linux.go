package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// cniTime bounds one call of all plugins of a configuration.
const cniTime = 60 * time.Second

// cniResult is what plugins answered.
type cniResult struct {
	Interface   string
	Address     string
	Nameservers []string
	Searches    []string
	Options     []string
}

// plugins runs CNI configurations through libcni.
type plugins struct {
	configs string
	cni     *libcni.CNIConfig
}

func newPlugins(configs, directories, cache string) *plugins {
	return &plugins{configs, libcni.NewCNIConfigWithCacheDir(filepath.SplitList(directories), cache, nil)}
}

// names are the configurations that can be read, and why others cannot.
func (p *plugins) names() (all []string, broken []error) {
	lists, broken := p.read()
	for _, l := range lists {
		if !slices.Contains(all, l.Name) {
			all = append(all, l.Name)
		}
	}
	return all, broken
}

// read reads the directory anew: an operator may change it at any time. One broken file does not stand in the way of the others.
func (p *plugins) read() (all []*libcni.NetworkConfigList, broken []error) {
	if p.configs == "" {
		return nil, nil
	}
	files, err := libcni.ConfFiles(p.configs, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, []error{fmt.Errorf("CNI configurations: %w", err)}
	}
	slices.Sort(files)
	for _, f := range files {
		list, err := readConfig(f)
		if err != nil {
			broken = append(broken, fmt.Errorf("CNI configuration %s: %w", f, err))
			continue
		}
		all = append(all, list)
	}
	return all, broken
}

// readConfig reads a list, or a file of one plugin, which is the older form.
func readConfig(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.NetworkConfFromFile(file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	one, err := libcni.NetworkPluginConfFromBytes(text)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{"name": one.Network.Name, "cniVersion": one.Network.CNIVersion, "plugins": []json.RawMessage{text}})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

func (p *plugins) load(mode string) (*libcni.NetworkConfigList, error) {
	lists, broken := p.read()
	for _, l := range lists {
		if l.Name == strings.TrimPrefix(mode, ModeCNI) {
			return l, nil
		}
	}
	return nil, errors.Join(append(broken, fmt.Errorf("no CNI configuration for the network %q is in %q", mode, p.configs))...)
}

// portMapping is the capability of that name.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func runtimeConf(id, ns string, r *Request) *libcni.RuntimeConf {
	var ports []portMapping
	for _, m := range mappings(r.Ports) {
		for _, proto := range []string{"tcp", "udp"} {
			ports = append(ports, portMapping{HostPort: int(m.Host), ContainerPort: int(m.To), Protocol: proto})
		}
	}
	c := &libcni.RuntimeConf{ContainerID: id, NetNS: ns, IfName: inside, Args: [][2]string{{"IgnoreUnknown", "true"}}}
	if len(ports) > 0 {
		c.CapabilityArgs = map[string]any{"portMappings": ports}
	}
	return c
}

// add has the plugins fill a namespace.
func (p *plugins) add(ctx context.Context, id, ns string, r *Request) (*cniResult, error) {
	list, err := p.load(r.Mode)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, cniTime)
	defer cancel()
	said, err := p.cni.AddNetworkList(bounded, list, runtimeConf(id, ns, r))
	if err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", r.Mode, err)
	}
	result, err := types100.NewResultFromResult(said)
	if err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", r.Mode, err)
	}
	out := &cniResult{Interface: inside, Nameservers: result.DNS.Nameservers, Searches: result.DNS.Search, Options: result.DNS.Options}
	if result.DNS.Domain != "" && len(out.Searches) == 0 {
		out.Searches = []string{result.DNS.Domain}
	}
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && (out.Address == "" || a.Unmap().Is4()) {
			out.Address = a.Unmap().String()
		}
	}
	for _, i := range result.Interfaces {
		if i.Sandbox != "" && i.Name != "" {
			out.Interface = i.Name
		}
	}
	return out, nil
}

// check asks the plugins whether all is as they made it.
func (p *plugins) check(ctx context.Context, id, ns string, r *Request) error {
	list, err := p.load(r.Mode)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, cniTime)
	defer cancel()
	if err := p.cni.CheckNetworkList(bounded, list, runtimeConf(id, ns, r)); err != nil {
		return fmt.Errorf("CNI network %q: %w", r.Mode, err)
	}
	return nil
}

// del has the plugins take back what they made, by the configuration that they made it with. Where neither that nor another of its name is there,
// they have made nothing.
func (p *plugins) del(ctx context.Context, id, ns string, r *Request) error {
	bounded, cancel := context.WithTimeout(ctx, cniTime)
	defer cancel()
	rt := runtimeConf(id, ns, r)
	name := strings.TrimPrefix(r.Mode, ModeCNI)
	var list *libcni.NetworkConfigList
	cached, _, err := p.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: name}, rt)
	if err == nil && len(cached) > 0 {
		if list, err = libcni.NetworkConfFromBytes(cached); err != nil {
			return fmt.Errorf("CNI network %q: the configuration that was kept: %w", r.Mode, err)
		}
	} else if list, err = p.load(r.Mode); err != nil {
		return nil
	}
	if err := p.cni.DelNetworkList(bounded, list, rt); err != nil {
		return fmt.Errorf("CNI network %q: %w", r.Mode, err)
	}
	return nil
}
