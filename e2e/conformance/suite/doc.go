// Package suite is upstream's end-to-end suite as a test program: the sources of k8s.io/kubernetes that hold tests called
// [Conformance], as they are, with a journal of their results. It stands alone so that the rest of e2e does not link it; make
// conformance builds it once and runs it through e2e/conformance.
package suite
