// Package nvidia finds and watches NVIDIA's GPUs through the library of their driver. It is the only home of go-nvml.
//
// The library is loaded when the plugin begins to watch and stays loaded: calls that were bound to it once would otherwise lead nowhere. Calls run one at a time,
// each under a deadline, away from the caller. One that hangs keeps the library to itself until it returns; until then everybody else is told so at once, and
// nothing piles up. A function that an old library does not have is never called: the linker would end the process.
//
// A session lasts from nvmlInit to nvmlShutdown. It ends when the driver fails, when a GPU is lost, or when what the kernel tells of the driver and of its GPUs
// changes; the next one finds what is there then.
package nvidia
