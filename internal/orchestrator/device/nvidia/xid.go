package nvidia

import "fmt"

// harmless are the errors that a program of a user causes by itself. The GPU is none the worse for them.
var harmless = map[uint64]bool{
	13:  true, // exception of the graphics engine
	31:  true, // memory page fault
	43:  true, // processing stopped
	45:  true, // preemptive clean-up after an earlier error
	68:  true, // exception of the video processor
	109: true, // timeout of a switch of contexts
	137: true, // page fault of remote memory
}

// sickness names the errors that are met most often among those that say that a GPU needs somebody.
var sickness = map[uint64]string{
	48:  "a memory error that could not be corrected",
	54:  "auxiliary power is not connected",
	61:  "the microcontroller has failed",
	62:  "the microcontroller has halted",
	63:  "memory is to be retired or remapped",
	64:  "memory could not be retired or remapped",
	74:  "an error of NVLink",
	79:  "the GPU has fallen off the bus",
	92:  "many memory errors had to be corrected",
	94:  "a contained memory error",
	95:  "an uncontained memory error",
	119: "the GPU's system processor does not answer",
	120: "the GPU's system processor has failed",
	140: "a memory error of an engine",
	143: "an error while the GPU was being set up",
}

// diagnosis is the sentence about an error that makes a GPU unhealthy; "" = it does not.
func diagnosis(xid uint64) string {
	if harmless[xid] {
		return ""
	}
	if s := sickness[xid]; s != "" {
		return fmt.Sprintf("XID %d: %s", xid, s)
	}
	return fmt.Sprintf("XID %d: the driver reports an error that is not known to be harmless", xid)
}
