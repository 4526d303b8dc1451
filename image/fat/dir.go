package fat

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"
)

const (
	attrLabel   = 0x08
	attrDir     = 0x10
	attrArchive = 0x20
	attrLong    = 0x0f
	longChars   = 13 // of UTF-16 in one entry
)

// checkName refuses what FAT, Windows or a shell cannot name.
func checkName(name string) error {
	switch {
	case name == "." || name == "..":
		return fmt.Errorf("name %q is taken", name)
	case len(name) > 255:
		return fmt.Errorf("name of %d bytes is longer than 255", len(name))
	case strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") || strings.HasPrefix(name, " "):
		return fmt.Errorf("name %q begins or ends with a space or a dot", name)
	}
	for _, c := range name {
		if c < 0x20 || c > 0x7e || strings.ContainsRune(`"*/:<>?\|`, c) {
			return fmt.Errorf("name %q holds %q, which is not for FAT names", name, c)
		}
	}
	return nil
}

// short gives the 11 bytes of the 8.3 name, and whether the long name is needed beside it. taken holds those of the folder.
func short(name string, taken map[string]bool) (string, bool) {
	upper := strings.ToUpper(name)
	base, ext := upper, ""
	if i := strings.LastIndexByte(upper, '.'); i > 0 {
		base, ext = upper[:i], upper[i+1:]
	}
	b, e := plain(base), plain(ext)
	if b == base && e == ext && len(b) <= 8 && len(e) <= 3 {
		if s := pad(b, 8) + pad(e, 3); !taken[s] {
			taken[s] = true
			return s, name != upper
		}
	}
	e = e[:min(len(e), 3)]
	for n := 1; ; n++ {
		tail := fmt.Sprintf("~%d", n)
		s := pad(b[:min(len(b), 8-len(tail))]+tail, 8) + pad(e, 3)
		if !taken[s] {
			taken[s] = true
			return s, true
		}
	}
}

// plain drops what a short name cannot hold.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("!#$%&'()-@^_`{}~", c) {
			return c
		}
		return -1
	}, s)
}

// entriesOf counts what a name takes in its folder.
func entriesOf(name string, long bool) int64 {
	if !long {
		return 1
	}
	return 1 + int64(len(name)+longChars-1)/longChars
}

// size is what the folder's entries take, before rounding up to clusters. A folder whose last cluster is full needs no end mark.
func (n *node) size() int64 {
	count := int64(2) // . and ..
	if n.parent == nil {
		count = 1 // the label
	}
	taken := map[string]bool{}
	for _, k := range n.kids {
		_, long := short(k.name, taken)
		count += entriesOf(k.name, long)
	}
	return count * dirEntry
}

// encode writes the folder's entries into b, which is zero.
func (n *node) encode(b []byte, t time.Time) {
	put := func(name string, attr byte, first uint32, size int64) {
		le := binary.LittleEndian
		copy(b, name)
		b[11] = attr
		date, clock := stamp(t)
		le.PutUint16(b[14:], clock)
		le.PutUint16(b[16:], date)
		le.PutUint16(b[18:], date)
		le.PutUint16(b[20:], uint16(first>>16))
		le.PutUint16(b[22:], clock)
		le.PutUint16(b[24:], date)
		le.PutUint16(b[26:], uint16(first))
		le.PutUint32(b[28:], uint32(size))
		b = b[dirEntry:]
	}
	if n.parent == nil {
		put(pad(n.label, 11), attrLabel, 0, 0)
	} else {
		put(pad(".", 11), attrDir, n.first, 0)
		up := n.parent.first
		if n.parent.parent == nil {
			up = 0 // the root, by rule, though it has a cluster
		}
		put(pad("..", 11), attrDir, up, 0)
	}
	taken := map[string]bool{}
	for _, k := range n.kids {
		s, long := short(k.name, taken)
		if long {
			b = putLong(b, k.name, checksum(s))
		}
		attr := byte(attrArchive)
		if k.dir {
			attr = attrDir
		}
		put(s, attr, k.first, k.bytes)
	}
}

// putLong writes the entries of a long name, last part first, and gives what is left of b.
func putLong(b []byte, name string, sum byte) []byte {
	u := utf16.Encode([]rune(name))
	if len(u)%longChars != 0 {
		u = append(u, 0)
		for len(u)%longChars != 0 {
			u = append(u, 0xffff)
		}
	}
	parts := len(u) / longChars
	for i := parts; i > 0; i-- {
		b[0] = byte(i)
		if i == parts {
			b[0] |= 0x40
		}
		b[11], b[13] = attrLong, sum
		for j, c := range u[(i-1)*longChars : i*longChars] {
			binary.LittleEndian.PutUint16(b[longAt[j]:], c)
		}
		b = b[dirEntry:]
	}
	return b
}

var longAt = [longChars]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// checksum ties a long name to its short one.
func checksum(short string) (sum byte) {
	for i := range 11 {
		sum = sum<<7 + sum>>1 + short[i]
	}
	return sum
}

func stamp(t time.Time) (date, clock uint16) {
	t = t.UTC()
	return uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()), uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
}
