package flash

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var darwinDisk = regexp.MustCompile(`^/dev/r?disk[0-9]+$`)

// isDarwinDisk says whether name is a whole disk's on macOS.
func isDarwinDisk(name string) bool { return darwinDisk.MatchString(name) }

// rawDarwin is the device that leads past the buffer cache, which makes writing many times as fast.
func rawDarwin(name string) string {
	if rest, ok := strings.CutPrefix(name, "/dev/disk"); ok {
		return "/dev/rdisk" + rest
	}
	return name
}

// diskutil reads what `diskutil info -plist -all` says: one property list for each disk and partition, one behind the other.
func diskutil(out []byte) ([]Disk, error) {
	var disks []Disk
	mounts := map[string][]string{} // by whole disk
	for _, doc := range bytes.SplitAfter(out, []byte("</plist>")) {
		at := bytes.Index(doc, []byte("<dict>"))
		if at < 0 {
			continue
		}
		d, err := plistDict(xml.NewDecoder(bytes.NewReader(doc[at:])))
		if err != nil {
			return nil, fmt.Errorf("diskutil: %w", err)
		}
		if m := d["MountPoint"]; m != "" {
			for _, whole := range []string{d["ParentWholeDisk"], d["APFSPhysicalStores"]} {
				if whole != "" {
					mounts[whole] = append(mounts[whole], m)
				}
			}
		}
		if d["WholeDisk"] != "true" || d["VirtualOrPhysical"] == "Virtual" {
			continue
		}
		size, _ := strconv.ParseInt(d["TotalSize"], 10, 64) // 0 is no disk
		if size <= 0 {
			continue
		}
		disks = append(disks, Disk{
			Name: d["DeviceIdentifier"], Path: d["DeviceNode"], Size: size, Model: strings.TrimSpace(d["MediaName"]), Transport: strings.ToLower(d["BusProtocol"]),
			Removable: d["Internal"] == "false" || d["RemovableMedia"] == "true", ReadOnly: d["WritableMedia"] == "false",
		})
	}
	for i := range disks {
		// macOS mounts whatever is put in; a card's volumes are unmounted when it is opened. The system's own are what counts.
		if slices.Contains(mounts[disks[i].Name], "/") || !disks[i].Removable {
			disks[i].InUse = mounts[disks[i].Name]
		}
	}
	slices.SortFunc(disks, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

// plistDict reads the plain values of a property list's first dictionary; of what lies deeper, the last text.
func plistDict(d *xml.Decoder) (map[string]string, error) {
	out := map[string]string{}
	key, depth := "", 0
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("its answer is cut")
		}
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			switch name := t.Name.Local; name {
			case "dict", "array":
				depth++
			case "true", "false":
				if depth == 1 {
					out[key] = name
				}
			default:
				var text string
				if err := d.DecodeElement(&text, &t); err != nil {
					return nil, err
				}
				switch {
				case name == "key" && depth == 1:
					key = text
				case name != "key":
					out[key] = text
				}
			}
		case xml.EndElement:
			if t.Name.Local == "dict" || t.Name.Local == "array" {
				if depth--; depth == 0 {
					return out, nil
				}
			}
		}
	}
}
