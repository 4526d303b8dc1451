package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// isTerminal says whether a person looks at w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// rawTerminal passes every key through as it is pressed. restore undoes it.
func rawTerminal(in io.Reader) (restore func(), err error) {
	if !isTerminal(in) {
		return func() {}, nil
	}
	fd := int(in.(*os.File).Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, old) }, nil
}
