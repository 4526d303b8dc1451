package machine

import (
	"path"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/size"
)

// Install says what a machine that is started over the network does (image/netboot/PXE.md).
type Install struct {
	Disk     DiskSelector `yaml:"disk" help:"which disk the image is written to (default: the only one that is empty)"`
	Wipe     bool         `yaml:"wipe" help:"write over a disk that holds data, too"`
	Diskless bool         `yaml:"diskless" help:"write no image and run from memory, at every start"`
	State    DiskSelector `yaml:"state" help:"which disk a diskless machine keeps its state on (default: none, and a restart forgets everything)"`
}

// DiskSelector picks disks by what they are. What is not said fits every disk.
type DiskSelector struct {
	MinSize   size.Bytes `yaml:"minSize" pattern:"^[0-9]+([KMGT]iB|B)$" help:"the least size, as in 100GiB"`
	MaxSize   size.Bytes `yaml:"maxSize" pattern:"^[0-9]+([KMGT]iB|B)$" help:"the largest size"`
	Model     string     `yaml:"model" help:"pattern of the model, as in Samsung*; case does not count"`
	Serial    string     `yaml:"serial" help:"pattern of the serial number"`
	Transport string     `yaml:"transport" enum:"nvme,ata,scsi,usb,mmc,virtio,xen" help:"how the disk hangs on the machine"`
}

// Transports are the ways a disk can hang on a machine.
var Transports = []string{"nvme", "ata", "scsi", "usb", "mmc", "virtio", "xen"}

// Empty says whether nothing was said.
func (d DiskSelector) Empty() bool { return d == DiskSelector{} }

// Fits says whether a disk is one of those meant.
func (d DiskSelector) Fits(bytes int64, model, serial, transport string) bool {
	return bytes >= int64(d.MinSize) && (d.MaxSize == 0 || bytes <= int64(d.MaxSize)) &&
		like(d.Model, model) && like(d.Serial, serial) && (d.Transport == "" || d.Transport == transport)
}

func like(pattern, text string) bool {
	ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(strings.ReplaceAll(text, "/", "_")))
	return pattern == "" || err == nil && ok
}

func (i *Install) problems(p *problems) {
	for _, d := range []struct {
		key string
		sel DiskSelector
	}{{"disk", i.Disk}, {"state", i.State}} {
		for key, pattern := range map[string]string{"model": d.sel.Model, "serial": d.sel.Serial} {
			if _, err := path.Match(pattern, ""); err != nil {
				p.addf([]any{"install", d.key, key}, "%q is not a pattern; an opening bracket has no end", pattern)
			}
		}
		if t := d.sel.Transport; t != "" && !slices.Contains(Transports, t) {
			p.addf([]any{"install", d.key, "transport"}, "%q is not one of %s", t, strings.Join(Transports, ", "))
		}
		if d.sel.MaxSize != 0 && d.sel.MaxSize < d.sel.MinSize {
			p.addf([]any{"install", d.key, "maxSize"}, "%v is less than minSize, %v", d.sel.MaxSize, d.sel.MinSize)
		}
	}
	if i.Diskless && !i.Disk.Empty() {
		p.add("a diskless machine gets no image; name the disk for its state as install.state", "install", "disk")
	}
	if !i.Diskless && !i.State.Empty() {
		p.add("is for diskless machines; write install.diskless: true, or install.disk", "install", "state")
	}
}
