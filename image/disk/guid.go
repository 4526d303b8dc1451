package disk

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is in the order people read it; on disk its first three fields are little-endian.
type GUID [16]byte

// Partition types. A PC shows the partitions of type Basic as drives, and leaves Linux ones alone.
var (
	TypeESP   = mustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	TypeBasic = mustGUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
	TypeLinux = mustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
)

// ParseGUID reads the usual text form.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("GUID %.40q: is not of the form 8-4-4-4-12", s)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(g) {
		return GUID{}, fmt.Errorf("GUID %.40q: is not hexadecimal", s)
	}
	return GUID(b), nil
}

func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// String is the usual text form, in lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// MarshalText writes the text form, for JSON.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText reads the text form.
func (g *GUID) UnmarshalText(t []byte) (err error) {
	*g, err = ParseGUID(string(t))
	return err
}

var diskOrder = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

// OnDisk gives the bytes as they lie on disk, and in device paths.
func (g GUID) OnDisk() (b [16]byte) { g.put(b[:]); return b }

func (g GUID) put(b []byte) {
	for i, j := range diskOrder {
		b[i] = g[j]
	}
}

func takeGUID(b []byte) (g GUID) {
	for i, j := range diskOrder {
		g[j] = b[i]
	}
	return g
}
