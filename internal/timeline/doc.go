// Package timeline records where the time of a request goes: spans from the gateway to the supervisor, kept for people to look at and sent to a collector by
// OTLP. It is the home of OpenTelemetry's libraries.
//
// It is off by default. A nil [Recorder] records nothing, and below it a nil [Span] takes every call and does nothing: code that could be recorded calls it
// without asking, and allocates nothing while it is off.
//
// What is recorded is bounded and says nothing about tenants. Names of spans and of attributes are those of the tables here; values are ids that are ours, numbers and words
// of the code. Commands, environments, file names, output and tokens have no way in. A trace has at most [maxSpans] spans in one process, the queue to the
// collector a fixed length: what does not fit is dropped and counted, and nobody waits.
//
// Clocks of other machines are not believed: what another process tells is moved and cut so that it lies within the call that it belongs to.
package timeline
