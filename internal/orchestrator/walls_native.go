//go:build linux && cgo

package orchestrator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/network"
	"rockpool/internal/sandbox"
	"rockpool/internal/sandbox/oci"
)

// openWalls makes the native sandbox's drivers. Jobs written for Docker run in it too.
func openWalls(cfg AgentConfig) (_ walls, err error) {
	runtime, err := sandbox.New(sandbox.Config{
		Dir: filepath.Join(cfg.DataDir, "sandboxes"), CgroupParent: "rockpool", MaxSandboxes: 4096, AllowUnconfined: cfg.AllowUnconfined, Log: cfg.Log,
	})
	if err != nil {
		return walls{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, runtime.Close())
		}
	}()
	images, err := image.NewStore(filepath.Join(cfg.DataDir, "images"))
	if err != nil {
		return walls{}, err
	}
	if err := selfTest(sandboxed.Native(runtime), images); err != nil {
		return walls{}, fmt.Errorf("this machine cannot run a sandbox: %w", err)
	}
	networks, err := openNetworks(cfg)
	if err != nil {
		return walls{}, err
	}
	classes, closeClasses, err := openClasses(cfg, images)
	if err != nil {
		return walls{}, errors.Join(err, networks.Close())
	}
	closeAll := func() error { return errors.Join(closeClasses(), networks.Close()) }
	logFences(cfg.Log, append(runtime.Fences(), networkFences(networks)...))
	names := []string{sandboxed.Name, sandboxed.NameExec}
	var drivers []driver.Driver
	if cfg.DockerEngine == "" {
		names = append(names, sandboxed.NameDocker)
	} else if drivers, err = openEngine(cfg, filesOf); err != nil {
		return walls{}, errors.Join(err, closeAll())
	}
	drivers = append(drivers, sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Classes: classes, Images: images}, names...)...)
	return walls{
		networks: networks,
		services: []lifecycle.Service{{Name: "networks of runners", Run: networks.Run}},
		drivers:  drivers,
		close:    func() error { return errors.Join(closeAll(), runtime.Close()) },
	}, nil
}

// filesOf gives access to the files of a container by the same descriptors as to those of a sandbox.
func filesOf(root *os.File, idBase uint32, workDir string) driver.Files {
	return sandboxed.Files(sandbox.FilesOf(root, idBase, sandbox.Root{WorkDir: workDir}))
}

// defaultName begins the names of interfaces and tables of a node with the default range; one with another range has one of its own, so that several
// nodes on a machine do not meet.
const defaultName = "rockpool"

func openNetworks(cfg AgentConfig) (*network.Manager, error) {
	c := network.Config{Dir: filepath.Join(cfg.DataDir, "network"), Name: defaultName, DNS: cfg.Network.DNS,
		CNIConfigs: cfg.Network.CNIConfigs, CNIPlugins: cfg.Network.CNIPlugins, Log: cfg.Log}
	if cfg.Network.Range != "" {
		var err error
		if c.Range, err = netip.ParsePrefix(cfg.Network.Range); err != nil {
			return nil, fmt.Errorf("network range %q: a prefix such as %s is wanted", cfg.Network.Range, DefaultNetwork().Range)
		}
	}
	if cfg.Network.Range != DefaultNetwork().Range {
		sum := sha256.Sum256([]byte(cfg.Network.Range))
		c.Name = "rp" + hex.EncodeToString(sum[:3])
	}
	return network.New(c)
}

func networkFences(m *network.Manager) (all []sandbox.Fence) {
	for _, f := range m.Fences() {
		all = append(all, sandbox.Fence(f))
	}
	return all
}

// openClasses opens the OCI runtimes that environments may ask for. One that was configured and does not work is an error.
func openClasses(cfg AgentConfig, images *image.Store) (_ map[string]sandboxed.Class, _ func() error, err error) {
	classes := map[string]sandboxed.Class{}
	var open []*oci.Runtime
	closeAll := func() error {
		var errs []error
		for _, r := range open {
			errs = append(errs, r.Close())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	for _, word := range cfg.Runtimes {
		name, program, found := strings.Cut(word, "=")
		if _, twice := classes[name]; twice || !found {
			return nil, nil, fmt.Errorf("runtimes: %q: a list of different name=path is wanted, such as runsc=/usr/local/bin/runsc", word)
		}
		r, err := oci.New(classConfig(cfg, name, program))
		if err != nil {
			return nil, nil, fmt.Errorf("runtimes: %w: correct the path, or take it off the list", err)
		}
		open = append(open, r)
		classes[name] = sandboxed.OCI(r)
		if err := selfTest(classes[name].Runtime, images); err != nil {
			return nil, nil, fmt.Errorf("runtimes: %s (%s) cannot run a sandbox on this machine: %w", name, program, err)
		}
		cfg.Log.WithFields(logging.Fields{"runtime": name, "program": program, "version": r.Version()}).Info("environments may ask for an OCI runtime")
	}
	return classes, closeAll, discardClasses(cfg, classes)
}

func classConfig(cfg AgentConfig, name, program string) oci.Config {
	return oci.Config{Name: name, Program: program, Dir: filepath.Join(cfg.DataDir, "oci", name), CgroupParent: "rockpool", Log: cfg.Log}
}

// discardClasses ends what runs in runtimes that an earlier start had and this one has not: no driver would find it.
func discardClasses(cfg AgentConfig, classes map[string]sandboxed.Class) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	had, err := os.ReadDir(filepath.Join(cfg.DataDir, "oci"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range had {
		if _, has := classes[e.Name()]; !has {
			cfg.Log.WithField("runtime", e.Name()).Warn("an OCI runtime is configured no more; what ran in it ends")
			errs = append(errs, oci.Discard(ctx, classConfig(cfg, e.Name(), "")))
		}
	}
	return errors.Join(errs...)
}

// selfTest runs one program in one sandbox. What a probe cannot see, such as a security module that forbids a mount, shows here and at
// start, not with the first learner; and what stands is known from then on.
func selfTest(runtime sandboxed.Runtime, images *image.Store) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	root, err := images.Resolve(ctx, image.Host)
	if err != nil {
		return err
	}
	s, err := runtime.Create(ctx, sandbox.Spec{ID: "self-test-" + ident.New(), Root: root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Destroy(ctx)) }()
	e, err := s.Exec(ctx, sandbox.ExecSpec{ID: "true", Argv: []string{"true"}, MergeStderr: true})
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, e.Stdout()); err != nil {
		return err
	}
	select {
	case <-e.Done():
	case <-ctx.Done():
		return errors.New("the program `true` did not end")
	}
	if result, err := e.Result(); err != nil || result.ExitCode != 0 {
		return errors.Join(fmt.Errorf("the program `true` ended with %d", result.ExitCode), err)
	}
	return nil
}

func logFences(log logging.Logger, fences []sandbox.Fence) {
	var standing []string
	for _, f := range fences {
		if f.InForce {
			standing = append(standing, f.Name)
			continue
		}
		log.WithFields(logging.Fields{"fence": f.Name, "detail": f.Detail}).Warn("a fence is not in force")
	}
	log.WithField("fences", standing).Info("fences in force, as found by a sandbox that was tried")
}
