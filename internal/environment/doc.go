// Package environment says what an execution environment is, keeps the catalogue of them, and provisions them.
//
// The catalogue's durable form is one template job per environment in the cluster; the copy in memory is what requests are
// answered from. A definition enters the catalogue only after the cluster has said that it can be placed, so a PUT that
// failed leaves the previous definition and its pool as they were. Changes of one environment are serialised; different environments
// do not wait for each other.
package environment
