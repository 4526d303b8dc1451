package install

import (
	"encoding/hex"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
)

type variables map[string]string

func (v variables) Write(name string, data []byte) error {
	v[name] = hex.EncodeToString(data)
	return nil
}

// The bytes as the UEFI specification spells them out.
func TestBootNext(t *testing.T) {
	guid, err := disk.ParseGUID("01234567-89AB-CDEF-0123-456789ABCDEF")
	if err != nil {
		t.Fatal(err)
	}
	v := variables{}
	p := &image.Plan{Arch: "amd64", Partitions: []image.Partition{{Name: boards.ESP, Start: 1 << 20, Size: 256 << 20, GUID: guid}}}
	if err := bootNext(v, p); err != nil {
		t.Fatal(err)
	}
	const want = "01000000" + "5e00" + "53006b0065007200720079000000" +
		"04012a00" + "01000000" + "0008000000000000" + "0000080000000000" + "67452301ab89efcd0123456789abcdef" + "0202" +
		"04043000" + "5c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e004500460049000000" + "7fff0400"
	if got := v["Boot5C0E-"+efiGlobal]; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := v["BootNext-"+efiGlobal]; got != "0e5c" {
		t.Errorf("BootNext %s", got)
	}
	if err := bootNext(v, &image.Plan{Arch: "amd64"}); err == nil {
		t.Error("a disk without a boot partition")
	}
}
