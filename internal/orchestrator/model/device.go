package model

import (
	"strconv"
	"strings"
)

// Attributes of devices that the scheduler knows by name.
const (
	AttrMemory = "memory"
	AttrShare  = "share" // of the instances that are parts of a device: ShareMIG or ShareSlot; whole devices do not have it
)

// Values of AttrShare.
const (
	ShareMIG  = "mig"  // the device is divided by its hardware
	ShareSlot = "slot" // tasks take turns on the device
)

// slotMark stands between the id of a device and the number of its slot.
const slotMark = "::"

// SlotID is the id of a device's slot with a number, from 0 on.
func SlotID(device string, n int) string { return device + slotMark + strconv.Itoa(n) }

// SlotParent is the id of the device that an instance is a slot of; false = it is none.
func SlotParent(id string) (device string, is bool) {
	i := strings.LastIndex(id, slotMark)
	if i <= 0 {
		return "", false
	}
	if _, err := strconv.ParseUint(id[i+len(slotMark):], 10, 16); err != nil {
		return "", false
	}
	return id[:i], true
}

// ID is vendor/type/name.
func (d *NodeDevice) ID() string { return d.Vendor + "/" + d.Type + "/" + d.Name }

// MemoryMB is the memory of each instance in MiB; 0 = not known.
func (d *NodeDevice) MemoryMB() int {
	n, _ := d.Attributes[AttrMemory].In("MiB")
	return int(n)
}

// Share is what the instances are parts by; "" = they are whole devices.
func (d *NodeDevice) Share() string { return d.Attributes[AttrShare].Text }
