// Package docker runs tasks as containers of a Docker Engine, over the engine's HTTP API. It serves jobs written for Nomad's
// Docker driver with their own meaning: the image's entry point, runtimes, ulimits, user-defined networks. A key that is not
// offered is refused by name.
//
// Containers are hardened whether or not the job asks for it, and no key takes that back (see container.go). Executions are
// the engine's; where it runs on this machine, each gets a control group below its container's, so that all of it can be
// signalled, measured and killed. DESIGN.md says what holds where the engine is elsewhere.
package docker
