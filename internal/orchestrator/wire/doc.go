// Package wire translates between the orchestrator's model and the types of nomad/api, in both directions and for all fields
// that the model has. Defaults are filled in on the way in; what a job asks for and Rockpool cannot do is an error of
// validation where leaving it out would change what runs, and a warning where it would not.
package wire
