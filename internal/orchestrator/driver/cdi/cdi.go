// Package cdi knows what the devices of an allocation are made of: nodes, files of their driver, and variables, as the operator's specifications of the Container
// Device Interface say. Of a specification no more is used than that. Hooks are never run, and nothing comes from an image or a job but the names of devices
// that the node has given.
package cdi

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/sandbox"
)

// Dirs are where specifications are looked for; the later wins.
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// libraryDir is where programs find the libraries of devices, by links with the names that they are asked for by. It is the first in LD_LIBRARY_PATH.
const libraryDir = "/run/rockpool/devices/lib"

// Variables that a grant sets by itself.
const (
	nvidiaVendor  = "nvidia.com"
	nvidiaVisible = "NVIDIA_VISIBLE_DEVICES"
	nvidiaNone    = "void" // is not even "none", which brings the driver's files
	cudaOrder     = "CUDA_DEVICE_ORDER"
	libraryPath   = "LD_LIBRARY_PATH"
)

// Registry finds devices in specifications. Its methods may be called concurrently.
type Registry struct {
	dirs  []string
	maker Maker
	log   logging.Logger

	mu   sync.Mutex
	told map[string]bool // what has been logged, so that it is once
}

// Maker makes a specification, as a file would have it, of the vendor's GPUs with these ids.
type Maker func(ctx context.Context, ids []string) ([]byte, error)

// New makes a registry of the given directories; none = [Dirs]. Nothing is read yet: specifications may come and change while the node runs. Where no file there is about
// NVIDIA's GPUs, maker is asked; nil = nobody is.
func New(log logging.Logger, maker Maker, dirs ...string) *Registry {
	if len(dirs) == 0 {
		dirs = Dirs
	}
	if log == nil {
		log = logging.Discard()
	}
	return &Registry{dirs: dirs, maker: maker, log: log, told: map[string]bool{}}
}

// Grant is what a sandbox gets with its devices.
type Grant struct {
	Devices []sandbox.Device
	Binds   []sandbox.Bind
	Env     []string // KEY=VALUE, one for each key
	Ignored []string // parts of the specifications that are not used, each with why
}

// Apply adds the grant to what a sandbox is made of. Its variables replace those of the image; its libraries are looked for before the image's own.
func (g Grant) Apply(spec *sandbox.Spec) {
	spec.Devices = append(slices.Clip(spec.Devices), g.Devices...)
	spec.Root.Binds = append(slices.Clip(spec.Root.Binds), g.Binds...)
	env := slices.Clone(spec.Root.Env)
	for _, e := range g.Env {
		key, value, _ := strings.Cut(e, "=")
		at := slices.IndexFunc(env, func(had string) bool { return strings.HasPrefix(had, key+"=") })
		if at < 0 {
			env = append(env, e)
			continue
		}
		if had := env[at][len(key)+1:]; key == libraryPath && had != "" {
			value += ":" + had
		}
		env[at] = key + "=" + value
	}
	spec.Root.Env = env
}

// Withhold has what runs in a sandbox without devices ask a vendor's runtime for none, whatever its image says: images made for CUDA ask for all.
func Withhold(spec *sandbox.Spec) {
	at := slices.IndexFunc(spec.Root.Env, func(e string) bool { return strings.HasPrefix(e, nvidiaVisible+"=") })
	if at >= 0 {
		spec.Root.Env = slices.Clone(spec.Root.Env)
		spec.Root.Env[at] = nvidiaVisible + "=" + nvidiaNone
	}
}

// Visible is the variable by which NVIDIA's runtime is told of the given devices, by their names in the interface. Where it is the engine's, it would take
// that variable from the image or the job for a request otherwise.
func Visible(names []string) (key, value string) {
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, theirs); ok {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nvidiaVisible, nvidiaNone
	}
	return nvidiaVisible, strings.Join(ids, ",")
}

// Resolve looks up devices by their names, such as nvidia.com/gpu=GPU-8f2a. A name that no specification has is an error that says what is known.
func (r *Registry) Resolve(ctx context.Context, names []string) (Grant, error) {
	if len(names) == 0 {
		return Grant{}, nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(r.dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return Grant{}, fmt.Errorf("read the device specifications: %w", err)
	}
	b := builder{visible: map[string][]string{}}
	common := map[string]bool{}
	made, err := r.made(ctx, cache, names)
	if err != nil {
		return Grant{}, err
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		vendor, _, device, err := parser.ParseQualifiedName(name)
		if err != nil {
			return Grant{}, fault.Wrap(fault.Invalid, err, "device %q: a name such as nvidia.com/gpu=0 is wanted", name)
		}
		found := cache.GetDevice(name)
		if found == nil && made != nil {
			if err := b.of(made, name, device, common); err != nil {
				return Grant{}, err
			}
			b.visible[vendor] = append(b.visible[vendor], device)
			continue
		}
		if found == nil {
			return Grant{}, r.unknown(cache, name)
		}
		if file := found.GetSpec().GetPath(); !common[file] {
			if err := operators(file); err != nil {
				return Grant{}, fault.Wrap(fault.Unsupported, err, "device %q: %s", name, err)
			}
			common[file] = true
			if err := b.add(file, &found.GetSpec().ContainerEdits); err != nil {
				return Grant{}, fault.Wrap(fault.Unsupported, err, "device %q: %s", name, err)
			}
		}
		if err := b.add(name, &found.ContainerEdits); err != nil {
			return Grant{}, fault.Wrap(fault.Unsupported, err, "device %q: %s", name, err)
		}
		b.visible[vendor] = append(b.visible[vendor], device)
	}
	grant := b.finish()
	r.tell(grant.Ignored)
	return grant, nil
}

// theirs begins the names of the devices that a maker knows.
const theirs = nvidiaVendor + "/gpu="

// madeSource is where a part comes from that a maker has made.
const madeSource = "the specification that was made of the driver"

// made is what the maker says of devices, if no file is about any of their kind; else nil. A file that cannot be used counts as one: it may be about them.
func (r *Registry) made(ctx context.Context, cache *cdi.Cache, names []string) (*specs.Spec, error) {
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, theirs); ok && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	about := slices.ContainsFunc(cache.ListDevices(), func(name string) bool { return strings.HasPrefix(name, theirs) })
	if r.maker == nil || len(ids) == 0 || about || len(cache.GetErrors()) > 0 {
		return nil, nil
	}
	text, err := r.maker(ctx, ids)
	if err == nil {
		var spec *specs.Spec
		if spec, err = cdi.ParseSpec(text); err == nil && spec.Kind != strings.TrimSuffix(theirs, "=") {
			err = fmt.Errorf("it is about %q", spec.Kind)
		}
		if err == nil {
			return spec, nil
		}
	}
	return nil, fault.Wrap(fault.Unsupported, err, "device %q: no specification in %s has it (write one with: %s), and none could be made: %s",
		theirs+ids[0], strings.Join(r.dirs, ", "), r.command(), err)
}

// command writes a specification where it is found.
func (r *Registry) command() string {
	return "nvidia-ctk cdi generate --output=" + filepath.Join(r.dirs[0], "nvidia.yaml")
}

// of adds a device of a specification that was made, and what all devices of it share.
func (b *builder) of(made *specs.Spec, name, device string, common map[string]bool) error {
	at := slices.IndexFunc(made.Devices, func(d specs.Device) bool { return d.Name == device })
	if at < 0 {
		return fault.New(fault.Unsupported, "device %q: %s does not have it", name, madeSource)
	}
	if !common[madeSource] {
		common[madeSource] = true
		if err := b.add(madeSource, &made.ContainerEdits); err != nil {
			return fault.Wrap(fault.Unsupported, err, "device %q: %s", name, err)
		}
	}
	if err := b.add(name, &made.Devices[at].ContainerEdits); err != nil {
		return fault.Wrap(fault.Unsupported, err, "device %q: %s", name, err)
	}
	return nil
}

// unknown says why there is no such device, and what to do.
func (r *Registry) unknown(cache *cdi.Cache, name string) error {
	var problems []string
	for file, errs := range cache.GetErrors() {
		for _, err := range errs {
			problems = append(problems, fmt.Sprintf("%s: %v", file, err))
		}
	}
	slices.Sort(problems)
	if len(problems) > 0 {
		return fault.New(fault.Unsupported, "device %q: no specification in %s has it; some cannot be used: %s", name, strings.Join(r.dirs, ", "), strings.Join(problems, "; "))
	}
	hint := "install one there"
	if strings.HasPrefix(name, nvidiaVendor+"/") {
		hint = "write one with: " + r.command()
	}
	known := "there is none"
	if all := cache.ListDevices(); len(all) > 0 {
		if len(all) > 16 {
			all = append(all[:16], "…")
		}
		known = "they have " + strings.Join(all, ", ")
	}
	return fault.New(fault.Unsupported, "device %q: no specification in %s has it (%s): %s", name, strings.Join(r.dirs, ", "), known, hint)
}

// tell logs what is not used, each once.
func (r *Registry) tell(ignored []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, what := range ignored {
		if len(r.told) < 1000 && !r.told[what] {
			r.told[what] = true
			r.log.WithField("part", what).Warn("a part of a device specification is not used")
		}
	}
}

// operators makes sure that a specification is the operator's: whoever can write it can have any device of the machine.
func operators(file string) error {
	for _, p := range []string{filepath.Dir(file), file} {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Stat(p, &stat); err != nil {
			return &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		switch {
		case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
			return fmt.Errorf("%s belongs to the user %d: it must belong to root (chown root)", p, stat.Uid)
		case info.Mode().Perm()&0o022 != 0:
			return fmt.Errorf("%s can be written to by others: take that away (chmod go-w)", p)
		}
	}
	return nil
}

// builder gathers the parts of a grant.
type builder struct {
	grant   Grant
	visible map[string][]string // names of devices by vendor
}

func (b *builder) ignore(where, format string, args ...any) {
	b.grant.Ignored = append(b.grant.Ignored, where+": "+fmt.Sprintf(format, args...))
}

func (b *builder) add(where string, raw *specs.ContainerEdits) error {
	for _, n := range raw.DeviceNodes {
		if err := b.node(n); err != nil {
			return err
		}
	}
	for _, m := range raw.Mounts {
		if err := b.mount(where, m); err != nil {
			return err
		}
	}
	for _, e := range raw.Env {
		key, _, ok := strings.Cut(e, "=")
		if !ok || key == "" || strings.ContainsRune(e, 0) {
			return fmt.Errorf("the variable %q is none: KEY=VALUE is wanted", e)
		}
		b.set(e)
	}
	for _, h := range raw.Hooks {
		b.ignore(where, "hook %s %s: hooks are never run", h.HookName, strings.Join(append([]string{h.Path}, h.Args...), " "))
	}
	for _, d := range raw.NetDevices {
		b.ignore(where, "network device %s: a sandbox has no interface of the node", d.HostInterfaceName)
	}
	if raw.IntelRdt != nil {
		b.ignore(where, "cache and memory bandwidth classes")
	}
	return nil // groups of the process (AdditionalGIDs) are not needed: a device is there for every user inside
}

// set replaces what was said of the same variable.
func (b *builder) set(e string) {
	key, _, _ := strings.Cut(e, "=")
	b.grant.Env = append(slices.DeleteFunc(b.grant.Env, func(had string) bool { return strings.HasPrefix(had, key+"=") }), e)
}

// theMachine are devices that give away all of it, whoever asks: memory, ports and the kernel's log.
var theMachine = map[[2]uint32]string{{1, 1}: "the memory", {1, 2}: "the kernel's memory", {1, 4}: "the ports", {1, 11}: "the kernel's log"}

// node takes a device as it is on the node now; what the specification says of its numbers has to agree.
func (b *builder) node(n *specs.DeviceNode) error {
	source := n.HostPath
	if source == "" {
		source = n.Path
	}
	if !clean(n.Path) || !strings.HasPrefix(n.Path, "/dev/") {
		return fmt.Errorf("the device node %q has no clean path below /dev", n.Path)
	}
	if !clean(source) {
		return fmt.Errorf("the device node %q of the node has no clean absolute path", source)
	}
	var stat unix.Stat_t
	if err := unix.Stat(source, &stat); err != nil {
		return fmt.Errorf("the device node %s is not there: %w", source, err)
	}
	d := sandbox.Device{Path: n.Path, Source: source, Major: unix.Major(uint64(stat.Rdev)), Minor: unix.Minor(uint64(stat.Rdev))}
	kind := "c"
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Block, kind = true, "b"
	case unix.S_IFCHR:
	default:
		return fmt.Errorf("%s is no device node", source)
	}
	if what, ok := theMachine[[2]uint32{d.Major, d.Minor}]; ok && !d.Block {
		return fmt.Errorf("%s is %s of the machine, which no sandbox is given", source, what)
	}
	said := strings.ReplaceAll(n.Type, "u", "c") // two names of one kind
	if said != "" && said != kind || (n.Major != 0 || n.Minor != 0) && (n.Major != int64(d.Major) || n.Minor != int64(d.Minor)) {
		return fmt.Errorf("%s is %s %d:%d, and its specification says %s %d:%d: write that anew", source, kind, d.Major, d.Minor, said, n.Major, n.Minor)
	}
	for _, c := range "rw" {
		if n.Permissions == "" || strings.ContainsRune(n.Permissions, c) {
			d.Access += string(c)
		}
	}
	if d.Access == "" {
		return nil // "none": it is to be seen, and a node that cannot be opened is no use
	}
	if at := slices.IndexFunc(b.grant.Devices, func(had sandbox.Device) bool { return had.Path == d.Path }); at >= 0 {
		had := b.grant.Devices[at]
		if had.Major != d.Major || had.Minor != d.Minor || had.Block != d.Block {
			return fmt.Errorf("%s and %s are to be at one place, %s", had.Source, d.Source, d.Path)
		}
		if len(d.Access) > len(had.Access) {
			b.grant.Devices[at] = d
		}
		return nil
	}
	b.grant.Devices = append(b.grant.Devices, d)
	return nil
}

// mount takes files and directories, to be read. What else there is on a node, such as the socket of a service, is a way out.
func (b *builder) mount(where string, m *specs.Mount) error {
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		b.ignore(where, "mount of type %s on %s: only files of the node are shown", m.Type, m.ContainerPath)
		return nil
	}
	if !clean(m.HostPath) || !clean(m.ContainerPath) || m.ContainerPath == "/" {
		return fmt.Errorf("the mount of %q on %q has no clean absolute paths", m.HostPath, m.ContainerPath)
	}
	info, err := os.Stat(m.HostPath)
	if err != nil {
		return fmt.Errorf("a file of the driver is not there, the specification may be of another version: %w", err)
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		b.ignore(where, "mount of %s: it is neither a regular file nor a directory", m.HostPath)
		return nil
	}
	if info.IsDir() {
		if why := meeting(m.HostPath); why != "" {
			b.ignore(where, "mount of %s: %s", m.HostPath, why)
			return nil
		}
	}
	for _, had := range b.grant.Binds {
		if had.Target == m.ContainerPath {
			if had.Source != m.HostPath {
				return fmt.Errorf("%s and %s are to be at one place, %s", had.Source, m.HostPath, m.ContainerPath)
			}
			return nil
		}
	}
	b.grant.Binds = append(b.grant.Binds, sandbox.Bind{Source: m.HostPath, Target: m.ContainerPath, Made: true})
	return nil
}

// meetings are where services of a node wait for their clients, now or later. A server of MPS does so in /tmp/nvidia-mps, which the vendor's own specifications have.
var meetings = []string{"/tmp", "/var/tmp", "/run", "/var/run", "/dev", "/proc", "/sys"}

// mostFiles bounds how much of a directory is looked through.
const mostFiles = 20_000

// meeting says why a directory is none of files alone; "" = it is.
func meeting(dir string) string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "it cannot be looked at: " + err.Error()
	}
	for _, m := range meetings {
		if real == m || strings.HasPrefix(real, m+"/") {
			return "services of the node keep their sockets in " + m
		}
	}
	files := 0
	err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if files++; err != nil {
			return err
		}
		if files > mostFiles {
			return fmt.Errorf("it has more than %d files", mostFiles)
		}
		if t := d.Type(); !t.IsRegular() && !t.IsDir() && t != fs.ModeSymlink {
			return fmt.Errorf("it has %s in it, which is no file", p)
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return ""
}

func clean(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0) }

// finish adds what follows from the whole: where libraries are found, and which devices a vendor's programs are to see.
func (b *builder) finish() Grant {
	if links := libraries(b.grant.Binds); len(links) > 0 {
		b.grant.Binds = append(b.grant.Binds, sandbox.Bind{Target: libraryDir, Made: true, Links: links})
		b.set(libraryPath + "=" + libraryDir)
	}
	if names := b.visible[nvidiaVendor]; len(names) > 0 {
		b.set(nvidiaVisible + "=" + strings.Join(names, ","))
		if !slices.ContainsFunc(b.grant.Env, func(e string) bool { return strings.HasPrefix(e, cudaOrder+"=") }) {
			b.set(cudaOrder + "=PCI_BUS_ID") // as nvidia-smi counts them; CUDA itself begins with the fastest
		}
	}
	return b.grant
}

// libraries are the links that ldconfig would make, and the one that a linker asks for: from the name that a library is asked for by to where it is shown.
// They are read off the node's files. Nothing of an image is run or written for that.
func libraries(binds []sandbox.Bind) map[string]string {
	links := map[string]string{}
	for _, b := range binds {
		base := path.Base(b.Target)
		stem, _, shared := strings.Cut(base, ".so")
		if !shared {
			continue
		}
		soname, err := nameOf(b.Source)
		if err != nil {
			continue // not a library of this machine's kind, such as one of 32 bits
		}
		for _, name := range []string{base, soname, stem + ".so"} {
			if _, taken := links[name]; !taken || name == base {
				links[name] = b.Target
			}
		}
	}
	return links
}

// nameOf is the name that programs ask for a library by.
func nameOf(file string) (string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	names, err := f.DynString(elf.DT_SONAME)
	switch {
	case err != nil:
		return "", err
	case f.Class != elf.ELFCLASS64 || f.Type != elf.ET_DYN:
		return "", errors.New("not a library of 64 bits")
	case len(names) == 0 || names[0] == "" || strings.ContainsAny(names[0], "/\x00"):
		return path.Base(file), nil
	}
	return names[0], nil
}
