package machine

import (
	"slices"
	"strings"
)

// RealSerial gives a serial number as it is, or "" for what makers write where they write nothing.
func RealSerial(text string) string {
	text = strings.TrimSpace(text)
	if slices.Contains(noSerials, strings.ToLower(text)) || strings.Trim(text, "0 .-_") == "" {
		return ""
	}
	return text
}

var noSerials = []string{"none", "n/a", "na", "not specified", "not applicable", "not available", "unknown", "default string", "system serial number", "serial number", "chassis serial number",
	"to be filled by o.e.m.", "to be filled by oem", "oem", "o.e.m.", "invalid", "empty", "xxxxxxxxxx", "123456789", "0123456789", "1234567890"}

// RealUUID gives an SMBIOS UUID in small letters, or "" for one that many machines share.
func RealUUID(text string) string {
	text = strings.ToLower(strings.TrimSpace(text))
	digits := strings.ReplaceAll(text, "-", "")
	if len(digits) != 32 || strings.Trim(digits, digits[:1]) == "" || strings.Trim(strings.ReplaceAll(digits, "fe", ""), "") == "" || slices.Contains(noUUIDs, text) {
		return ""
	}
	return text
}

// noUUIDs are those that firmware is delivered with, in both orders of bytes.
var noUUIDs = []string{"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc",
	"78563412-3412-7856-90ab-cddeefaabbcc"}
