package flash

import (
	"encoding/binary"
	"slices"
	"testing"
)

const plist = `<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict>
 <key>BusProtocol</key><string>PCI-Express</string><key>DeviceIdentifier</key><string>disk0</string><key>DeviceNode</key><string>/dev/disk0</string>
 <key>Internal</key><true/><key>MediaName</key><string>APPLE SSD</string><key>RemovableMedia</key><false/><key>TotalSize</key><integer>500277792768</integer>
 <key>VirtualOrPhysical</key><string>Physical</string><key>WholeDisk</key><true/><key>WritableMedia</key><true/>
</dict></plist>
<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict>
 <key>APFSPhysicalStores</key><array><dict><key>APFSPhysicalStore</key><string>disk0</string></dict></array>
 <key>DeviceIdentifier</key><string>disk3s1</string><key>MountPoint</key><string>/</string><key>ParentWholeDisk</key><string>disk3</string>
 <key>TotalSize</key><integer>1</integer><key>WholeDisk</key><false/>
</dict></plist>
<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict>
 <key>BusProtocol</key><string>USB</string><key>DeviceIdentifier</key><string>disk4</string><key>DeviceNode</key><string>/dev/disk4</string>
 <key>Internal</key><false/><key>MediaName</key><string>SD Card Reader </string><key>RemovableMedia</key><true/><key>TotalSize</key><integer>31914983424</integer>
 <key>VirtualOrPhysical</key><string>Physical</string><key>WholeDisk</key><true/><key>WritableMedia</key><true/>
</dict></plist>
<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict>
 <key>DeviceIdentifier</key><string>disk4s1</string><key>MountPoint</key><string>/Volumes/boot</string><key>ParentWholeDisk</key><string>disk4</string>
 <key>TotalSize</key><integer>1</integer><key>WholeDisk</key><false/>
</dict></plist>
`

// What diskutil says becomes the same list as on Linux: the system's disk is refused, a card with its volume mounted is not, because
// it is unmounted first.
func TestDisksOfMacOS(t *testing.T) {
	disks, err := diskutil([]byte(plist))
	if err != nil || len(disks) != 2 {
		t.Fatalf("%+v %v", disks, err)
	}
	if d := disks[1]; d.String() != "/dev/disk4, 30GiB, usb, SD Card Reader" || d.Refuse(false) != nil {
		t.Errorf("%s: %v", d, d.Refuse(false))
	}
	if d := disks[0]; d.Refuse(true) == nil || !slices.Contains(d.InUse, "/") {
		t.Errorf("%s would be written: %+v", d, d)
	}
	if _, err := diskutil([]byte(plist[:600] + "</plist>")); err == nil {
		t.Error("a cut answer was read")
	}
	if !isDarwinDisk("/dev/disk4") || isDarwinDisk("/dev/disk4s1") || isDarwinDisk("/dev/null") || rawDarwin("/dev/disk4") != "/dev/rdisk4" || rawDarwin("/dev/rdisk4") != "/dev/rdisk4" {
		t.Error("names of disks")
	}
}

// The structures of Windows, laid out as its headers say.
func TestDisksOfWindows(t *testing.T) {
	for name, want := range map[string]int{`\\.\PhysicalDrive3`: 3, `\\.\PHYSICALDRIVE10`: 10, `\\.\PhysicalDrive`: -1, `C:`: -1, `\\.\PhysicalDrive-1`: -1} {
		if n, ok := driveNumber(name); ok != (want >= 0) || ok && n != want {
			t.Errorf("%s: %d %v", name, n, ok)
		}
	}
	b := make([]byte, 80)
	b[10] = 1
	binary.LittleEndian.PutUint32(b[12:], 40)
	binary.LittleEndian.PutUint32(b[16:], 50)
	binary.LittleEndian.PutUint32(b[28:], 7)
	copy(b[40:], "Generic \x00")
	copy(b[50:], "STORAGE  DEVICE\x00")
	if model, bus, removable := storageDescriptor(b); model != "Generic STORAGE DEVICE" || bus != "usb" || !removable {
		t.Errorf("%q %q %v", model, bus, removable)
	}
	binary.LittleEndian.PutUint32(b[12:], 4000)
	_, _, _ = storageDescriptor(b)
	_, _, _ = storageDescriptor(nil)
	e := make([]byte, 8+2*24)
	binary.LittleEndian.PutUint32(e, 2)
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[32:], 5)
	if got := diskExtents(e); !slices.Equal(got, []int{1, 5}) {
		t.Errorf("%v", got)
	}
	binary.LittleEndian.PutUint32(e, 1<<30)
	if got := diskExtents(e); len(got) != 2 {
		t.Errorf("%v", got)
	}
}
