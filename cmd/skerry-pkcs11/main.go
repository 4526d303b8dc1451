//go:build !windows

// Skerry-pkcs11 signs with a key on a PKCS#11 token, for skerry's --sign-with. It is a program of its own because it loads the
// token's library, which is C: skerry itself needs none.
//
//	skerry release build --keys keys --sign-with "skerry-pkcs11 /usr/lib/softhsm/libsofthsm2.so" …
//
// skerry appends the key's name, its ID and the algorithm; the message comes on standard input, and the signature goes to standard
// output. The key is the one with that name as its label. PKCS11_PIN is the PIN, or @FILE for one that is in a file; PKCS11_TOKEN
// is the token's label, if keys of the name are on several.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxMessage bounds what is read: metadata of a large repository is the most.
const maxMessage = 64 << 20

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skerry-pkcs11:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 4 {
		return errors.New("usage: skerry-pkcs11 LIBRARY NAME ID ALGORITHM <message >signature; skerry --sign-with 'skerry-pkcs11 LIBRARY' fills in the rest")
	}
	pin, err := readPIN(os.Getenv("PKCS11_PIN"))
	if err != nil {
		return err
	}
	message, err := io.ReadAll(io.LimitReader(in, maxMessage+1))
	if err != nil {
		return err
	}
	if len(message) > maxMessage {
		return fmt.Errorf("the message is larger than %d bytes", maxMessage)
	}
	m, err := load(args[0])
	if err != nil {
		return err
	}
	defer m.close()
	sig, err := m.sign(os.Getenv("PKCS11_TOKEN"), args[1], pin, args[3], message)
	if err != nil {
		return fmt.Errorf("key %s: %w", args[1], err)
	}
	_, err = out.Write(sig)
	return err
}

func readPIN(pin string) (string, error) {
	name, ok := strings.CutPrefix(pin, "@")
	if !ok {
		return pin, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("PKCS11_PIN: %w", err)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}
