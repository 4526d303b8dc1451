// Package conformance runs upstream's end-to-end tests against a cluster of skerryd on this host: make conformance and make
// conformance-quick. RESULTS.md says how that ended the last time somebody looked.
//
// The tests are those of the k8s.io/kubernetes module that skerryd is made of (package suite), their images are built from
// the same module and from Debian's packages (package images), and each result is on the disk as soon as it is there
// (package journal), so that a run can be cut short and goes on later.
package conformance
