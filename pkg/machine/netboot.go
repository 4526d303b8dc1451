package machine

// Where a machine that was started over the network has what for.
const (
	InstallerFile = "/usr/libexec/skerry/install" // in the initramfs of such a machine only: init knows by it
	NetbootDir    = "/netboot"                    // in the initramfs: the root of a machine that runs from memory
	NetbootFile   = "/run/skerry/netboot.json"    // a Netboot
)

// Names of files in NetbootDir, beside those of a release folder.
const (
	NetbootRoot      = "root.img"
	NetbootConfigDir = "config" // what is else on the config partition
)

// Netboot is what the installer leaves for init to do.
type Netboot struct {
	Diskless bool   `json:"diskless"`        // go on to the root in memory; else restart
	State    string `json:"state,omitempty"` // disk with a partition called data; "": what changes is in memory too
	Why      string `json:"why"`             // for the console
}
