// Package vm tests the sandbox on a kernel that this machine does not run: it boots a small virtual machine whose only control groups are v2 and
// runs the sandbox package's own tests as root inside. The file system of the machine is an initramfs of the test binary and of what this
// system has of the programs its tests start.
//
// It needs neither root nor KVM, but two Debian packages: qemu-system-x86, and linux-image-cloud-amd64 for a kernel. A kernel need not be
// installed: ROCKPOOL_VM_KERNEL is the absolute path of a directory into which the package of one was unpacked (dpkg-deb -x), with boot and lib/modules in
// it; `make vm` looks in .cache/kernel.
package vm
