// Package image turns a reference to an image into a root file system for package sandbox.
//
// A [Store] pulls OCI and Docker images from registries, or takes them from an OCI layout, an archive of `docker save` or a
// directory on the node. It verifies every digest, unpacks each layer once into a directory named after what is in it, shares
// these directories read-only between all sandboxes, and removes what nobody uses. No daemon is involved.
//
// The image "host" needs none of that: a read-only view of the node's own system. Programs and libraries are the node's /usr,
// bound read-only; everything else is a skeleton of the package's own making, with an /etc copied from an allow list that
// holds nothing secret. A fresh machine runs what it has installed, with no registry.
//
// Everything that comes with an image is hostile: names, links, sizes, digests, the registry itself. DESIGN.md has the rules.
//
// A [Store] may be used concurrently.
package image
