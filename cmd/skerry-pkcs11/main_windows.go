// Skerry-pkcs11 is not there for Windows.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "skerry-pkcs11: is not there for Windows; sign where the token can be had by Linux, macOS or FreeBSD")
	os.Exit(1)
}
