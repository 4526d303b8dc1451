//go:build !windows

package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

// ulong is CK_ULONG: an unsigned long of C, which is as wide as a pointer on every system but Windows.
type ulong = uintptr

// functions is CK_FUNCTION_LIST: a version, then pointers in the standard's order.
type functions struct {
	_  [2]byte
	of [68]uintptr
}

// Places of functions in the list (PKCS#11 v2.40, section 3.6; the same in v3).
const (
	fnInitialize      = 0
	fnFinalize        = 1
	fnGetSlotList     = 4
	fnGetTokenInfo    = 6
	fnOpenSession     = 12
	fnCloseSession    = 13
	fnLogin           = 18
	fnFindObjectsInit = 26
	fnFindObjects     = 27
	fnFindObjectsEnd  = 28
	fnSignInit        = 42
	fnSign            = 43
)

// Numbers of the standard.
const (
	ckoPrivateKey  = 3
	ckaClass       = 0
	ckaLabel       = 3
	ckuUser        = 1
	ckfSerial      = 4
	ckmRSA         = 0x40   // CKM_SHA256_RSA_PKCS
	ckmEdDSA       = 0x1057 // CKM_EDDSA
	ckrAlreadyInit = 0x191
	ckrLoggedIn    = 0x100
)

var mechanisms = map[string]ulong{"EDDSA": ckmEdDSA, "SHA256-RSA-PKCS": ckmRSA}

// faults are the answers that a person can do something about.
var faults = map[ulong]string{
	0x07: "the token does not know what it was asked (CKR_ARGUMENTS_BAD)", 0x30: "the token does not answer (CKR_DEVICE_ERROR)",
	0x63: "the key is of another kind than the key folder says (CKR_KEY_TYPE_INCONSISTENT)", 0x68: "the key may not sign (CKR_KEY_FUNCTION_NOT_PERMITTED)",
	0x70: "the token cannot sign in this way (CKR_MECHANISM_INVALID)", 0xa0: "the PIN in PKCS11_PIN is wrong", 0xa1: "the PIN in PKCS11_PIN is wrong",
	0xa2: "the PIN in PKCS11_PIN has a wrong length", 0xa4: "the PIN is locked after too many wrong ones: unlock it with the token's own tool",
	0x101: "it wants a PIN: set PKCS11_PIN",
}

// attribute is CK_ATTRIBUTE.
type attribute struct {
	kind  ulong
	value unsafe.Pointer
	size  ulong
}

// mechanism is CK_MECHANISM.
type mechanism struct {
	kind      ulong
	parameter unsafe.Pointer
	size      ulong
}

// tokenInfo is CK_TOKEN_INFO, of which the label counts.
type tokenInfo struct {
	label [32]byte
	rest  [512]byte
}

// module is a token's library, loaded.
type module struct{ list *functions }

func load(library string) (*module, error) {
	handle, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%s: is not a PKCS#11 library that can be loaded: %w", library, err)
	}
	get, err := purego.Dlsym(handle, "C_GetFunctionList")
	if err != nil {
		return nil, fmt.Errorf("%s: is no PKCS#11 library: %w", library, err)
	}
	m := &module{}
	if rv, _, _ := purego.SyscallN(get, uintptr(unsafe.Pointer(&m.list))); rv != 0 || m.list == nil {
		return nil, fmt.Errorf("%s: is no PKCS#11 library: it answers %#x", library, rv)
	}
	if err := m.call(fnInitialize, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", library, err)
	}
	return m, nil
}

func (m *module) close() { _ = m.call(fnFinalize, 0) }

func (m *module) call(fn int, args ...uintptr) error {
	rv, _, _ := purego.SyscallN(m.list.of[fn], args...)
	if rv == 0 || fn == fnInitialize && rv == ckrAlreadyInit || fn == fnLogin && rv == ckrLoggedIn {
		return nil
	}
	if text, ok := faults[rv]; ok {
		return errors.New(text)
	}
	return fmt.Errorf("the token answers %#x", rv)
}

// sign looks for the key on every token and signs with it. What C code is given the address of is on the heap, where it stays.
func (m *module) sign(token, label, pin, algorithm string, message []byte) ([]byte, error) {
	how, ok := mechanisms[algorithm]
	if !ok {
		return nil, fmt.Errorf("algorithm %q: is neither EDDSA nor SHA256-RSA-PKCS", algorithm)
	}
	slots, err := m.slots()
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, slot := range slots {
		name, err := m.tokenLabel(slot)
		if err != nil {
			return nil, err
		}
		seen = append(seen, name)
		if token != "" && name != token {
			continue
		}
		sig, err := m.signIn(slot, label, pin, how, message)
		if err != nil || sig != nil {
			return sig, err
		}
	}
	return nil, fmt.Errorf("no token has a private key with this label; tokens seen: %s", strings.Join(seen, ", "))
}

func (m *module) slots() ([]ulong, error) {
	count := new(ulong)
	if err := m.call(fnGetSlotList, 1, 0, uintptr(unsafe.Pointer(count))); err != nil {
		return nil, err
	}
	if *count == 0 {
		return nil, errors.New("there is no token")
	}
	list := make([]ulong, *count)
	if err := m.call(fnGetSlotList, 1, uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(count))); err != nil {
		return nil, err
	}
	return list[:min(*count, ulong(len(list)))], nil
}

func (m *module) tokenLabel(slot ulong) (string, error) {
	info := new(tokenInfo)
	err := m.call(fnGetTokenInfo, slot, uintptr(unsafe.Pointer(info)))
	return strings.TrimRight(string(info.label[:]), " \x00"), err
}

// signIn signs with a token's key; nil if it has none of the label.
func (m *module) signIn(slot ulong, label, pin string, how ulong, message []byte) ([]byte, error) {
	session := new(ulong)
	if err := m.call(fnOpenSession, slot, ckfSerial, 0, 0, uintptr(unsafe.Pointer(session))); err != nil {
		return nil, err
	}
	defer func() { _ = m.call(fnCloseSession, *session) }()
	if pin != "" {
		b := []byte(pin)
		if err := m.call(fnLogin, *session, ckuUser, uintptr(unsafe.Pointer(&b[0])), ulong(len(b))); err != nil {
			return nil, err
		}
	}
	key, err := m.find(*session, label)
	if err != nil || key == 0 {
		return nil, err
	}
	if err := m.call(fnSignInit, *session, uintptr(unsafe.Pointer(&mechanism{kind: how})), key); err != nil {
		return nil, err
	}
	sig, size := make([]byte, 1024), new(ulong)
	*size = ulong(len(sig))
	message = append(message, 0) // has an address even if it is empty
	if err := m.call(fnSign, *session, uintptr(unsafe.Pointer(&message[0])), ulong(len(message)-1), uintptr(unsafe.Pointer(&sig[0])), uintptr(unsafe.Pointer(size))); err != nil {
		return nil, err
	}
	return sig[:min(*size, ulong(len(sig)))], nil
}

// find gives the private key with a label, 0 for none.
func (m *module) find(session ulong, label string) (ulong, error) {
	class, name := new(ulong), []byte(label)
	*class = ckoPrivateKey
	var pin runtime.Pinner // the template holds addresses itself
	defer pin.Unpin()
	pin.Pin(class)
	pin.Pin(&name[0])
	template := []attribute{{ckaClass, unsafe.Pointer(class), unsafe.Sizeof(*class)}, {ckaLabel, unsafe.Pointer(&name[0]), ulong(len(name))}}
	if err := m.call(fnFindObjectsInit, session, uintptr(unsafe.Pointer(&template[0])), ulong(len(template))); err != nil {
		return 0, err
	}
	defer func() { _ = m.call(fnFindObjectsEnd, session) }()
	found, count := make([]ulong, 2), new(ulong)
	if err := m.call(fnFindObjects, session, uintptr(unsafe.Pointer(&found[0])), ulong(len(found)), uintptr(unsafe.Pointer(count))); err != nil {
		return 0, err
	}
	if *count > 1 {
		return 0, errors.New("the token has several private keys with this label; give them names of their own")
	}
	return found[0], nil
}
