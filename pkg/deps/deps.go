// Package deps holds the rules of who may import whom, as a table to read, and the test that keeps them.
//
// A package may import packages of its own module only from layers above its own in the table. A package that is not in
// the table fails the test: whoever adds one decides where it stands. Tests may import what they like, but for the
// packages that are never to be linked together.
package deps

// Layers, from what needs nothing to what needs everything. A name ending in /... stands for all packages below it and
// itself. Packages of one layer do not import each other; where they do, write two layers.
const Layers = `
leaves:    pkg/size pkg/atomicfile pkg/strictyaml pkg/version pkg/fault pkg/notify pkg/token pkg/supervise
leaves:    pkg/supervise/process pkg/clock pkg/powercut pkg/delta
leaves:    pkg/join pkg/balance pkg/seed pkg/checkconfig
leaves:    pkg/gateway/proxy pkg/outbound/outboundtest pkg/platform/platformtest
formats:   image/disk image/datafs image/fat image/rootfs image/verity image/uki image/cloud image/imagetest image/oci
formats:   image/cloud/publish
formats:   image/cloud/aws image/cloud/aws/awstest image/cloud/gcp image/cloud/gcp/gcptest image/cloud/azure image/cloud/azure/azuretest
formats:   image/netboot/tftp image/netboot/protocol
formats:   image/grub
data:      pkg/slot
data:      pkg/slot/slottest pkg/release pkg/kmod pkg/debian
data:      image/initramfs
data:      pkg/keys boards pkg/machine
system:    pkg/linux pkg/network/wpa
system:    pkg/network
system:    pkg/platform
data:      image/cloud/registry
engine:    pkg/pki pkg/server/secrets
build:     image/compose overlays
build:     image image/releasetest image/flash
build:     image/patch
build:     image/fleet
build:     image/netboot image/install
update:    pkg/repository pkg/floor
update:    pkg/update/record pkg/update/host
update:    pkg/update
tools:     e2e/vm e2e/nodes e2e/lan
tools:     e2e/gatewayapi pkg/datastore/databases
engine:    pkg/cni pkg/datastore
engine:    pkg/csiglobals pkg/leader pkg/enrol pkg/outbound pkg/registries pkg/helm pkg/reencrypt
engine:    pkg/podnet pkg/drain
engine:    pkg/datastore/snapshot pkg/datastore/etcd pkg/server/bootstrapdata
engine:    pkg/netpol
engine:    pkg/addons pkg/server/membership
engine:    pkg/controllers
engine:    pkg/servicelb pkg/localstorage pkg/metricsserver pkg/rollout
engine:    pkg/lostnodes
engine:    pkg/gateway
engine:    pkg/gateway/controller
engine:    pkg/server pkg/agent
test:      pkg/deps
programs:  cmd/skerryd/internal/settings cmd/skerryd/internal/updates
programs:  cmd/skerryd/internal/host cmd/skerryd/internal/crictl
programs:  e2e/conformance/images e2e/conformance/journal
programs:  init cmd/... e2e e2e/netboot e2e/conformance e2e/conformance/suite e2e/stock
`

// Never lists what must not be reached, not even through other packages: importer -> imported, and why. Names without a
// dot in their first part are of this module.
const Never = `
init           -> k8s.io/kubernetes  : process 1 is in the initramfs and must stay small
cmd/skerry     -> k8s.io/kubernetes  : the desk tool starts at once
image/...      -> k8s.io/kubernetes  : images are built by the desk tool
cmd/skerry-pod -> k8s.io/kubernetes  : it starts for every pod
boards         -> k8s.io             : a board is data
pkg/machine    -> k8s.io             : init and the desk tool read the node config
pkg/join       -> k8s.io             : both ends of a connection that knows only a token
pkg/podnet     -> k8s.io             : links and routes
pkg/server     -> pkg/agent          : they meet in cmd/skerryd alone
pkg/agent      -> pkg/server         : they meet in cmd/skerryd alone
pkg/...        -> cmd                : a program is nobody's library
image/...      -> cmd                : a program is nobody's library
init           -> cmd                : a program is nobody's library
image/disk     -> image              : a format knows no image
pkg/...        -> github.com/aws     : cloud SDKs stay in image/cloud
init           -> github.com/aws     : cloud SDKs stay in image/cloud
cmd/skerryd    -> github.com/aws     : cloud SDKs stay in image/cloud
pkg/...        -> github.com/Azure/azure-sdk-for-go : cloud SDKs stay in image/cloud
init           -> github.com/Azure/azure-sdk-for-go : cloud SDKs stay in image/cloud
cmd/skerryd    -> github.com/Azure/azure-sdk-for-go : cloud SDKs stay in image/cloud
init           -> golang.org/x/oauth2 : cloud SDKs stay in image/cloud
`

// Calls lists system calls that end or reshape the machine, and the only packages that may make them.
const Calls = `
Reboot     : init pkg/linux
PivotRoot  : init pkg/linux
Mount      : init pkg/linux
Unmount    : init pkg/linux
`
