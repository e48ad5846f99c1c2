// Package image turns a reference to an image into a root file system for package sandbox.
//
// So far there is one image, "host": a read-only view of the node's own system. Programs and libraries are the node's /usr,
// bound read-only; everything else is a skeleton of the package's own making, with an /etc copied from an allow list that
// holds nothing secret. A fresh machine runs what it has installed, with no registry.
//
// A [Store] may be used concurrently.
package image
