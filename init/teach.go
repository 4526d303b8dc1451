package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

// teachFirmware brings firmware that has Secure Boot on the certificates of a key folder that is going over to new keys. The
// release carries them, signed by the key above, which is what the firmware goes by; we only carry them there. A slot on trial
// changes nothing that outlives it.
func teachFirmware(_ context.Context, s *system) error {
	if !s.id.Boot.Secure || s.id.Boot.Trial {
		return nil
	}
	return teach(os.DirFS("/"+machine.TrustDir), linux.EFIVariables{Dir: linux.EFIVars().Target}, s.console.say)
}

func teach(trust fs.FS, vars linux.EFIVariables, say func(string)) error {
	var errs []error
	for _, name := range []string{"PK", "KEK", "db"} { // each on the word of the one before
		auth, err := readOptional(trust, name+machine.FirmwareUpdate)
		if err == nil && auth != nil {
			err = teachOne(name, auth, vars, say)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("variable %s of Secure Boot: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func teachOne(name string, auth []byte, vars linux.EFIVariables, say func(string)) error {
	file, err := uki.VariableOf(name)
	if err != nil {
		return err
	}
	want, err := uki.Enrolled(auth)
	if err != nil {
		return err
	}
	has, err := fs.ReadFile(os.DirFS(vars.Dir), file)
	if err != nil {
		return err
	}
	if len(has) < 4 { // attributes
		return errors.New("is cut off")
	}
	certs, err := uki.Certificates(has[4:])
	if err != nil {
		return err
	}
	known := 0
	for _, w := range want {
		for _, c := range certs {
			if bytes.Equal(c, w.Raw) {
				known++
				break
			}
		}
	}
	if known == len(want) { // flash wears: once is enough
		return nil
	}
	if err := vars.WriteAs(file, uki.UpdateAttributes(name), auth); err != nil {
		return fmt.Errorf("the firmware refuses the certificate of %s: %w", want[len(want)-1].Subject.CommonName, err)
	}
	say(fmt.Sprintf("teach firmware: %s has the next certificate now", name))
	return nil
}
