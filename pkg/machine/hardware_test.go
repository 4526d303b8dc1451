package machine

import "testing"

func TestNamesThatManyMachinesShare(t *testing.T) {
	for _, text := range []string{"", "0", "00000000", "None", " To Be Filled By O.E.M. ", "Default string", "System Serial Number", "123456789", "0000-0000"} {
		if got := RealSerial(text); got != "" {
			t.Errorf("serial %q is taken for one machine's: %q", text, got)
		}
	}
	for text, want := range map[string]string{"S-1": "S-1", " PF0001 ": "PF0001", "10000000a1b2c3d4": "10000000a1b2c3d4"} {
		if got := RealSerial(text); got != want {
			t.Errorf("serial %q: %q", text, got)
		}
	}
	for _, text := range []string{"", "x", "Not Settable", "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "fefefefe-fefe-fefe-fefe-fefefefefefe",
		"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009"} {
		if got := RealUUID(text); got != "" {
			t.Errorf("UUID %q is taken for one machine's: %q", text, got)
		}
	}
	if got := RealUUID("4C4C4544-0035-3010-8048-B7C04F4A4D32\n"); got != "4c4c4544-0035-3010-8048-b7c04f4a4d32" {
		t.Errorf("a real one: %q", got)
	}
}
