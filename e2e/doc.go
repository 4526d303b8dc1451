// Package e2e holds promises, each a test on the whole product: what was built, as it will run, looked at from outside.
//
// The tests find what they test in the folder -out (the Makefile's out/), and are skipped unless asked for: -native runs
// skerryd on this host and needs root, -vm boots the image in QEMU. `make test` asks for both.
package e2e
