package agent

import (
	"cmp"
	"fmt"
	"path/filepath"
)

// alternative is a runtime that comes from elsewhere: a program that does what runc does, or a shim of its own.
type alternative struct {
	program string
	shim    string // containerd's name for it; "" is runc's shim, which calls the program
}

// alternatives are K3s's, by the names that pods find them with: a RuntimeClass's handler.
var alternatives = map[string]alternative{
	"crun":                {program: "crun"},
	"nvidia":              {program: "nvidia-container-runtime"},
	"nvidia-cdi":          {program: "nvidia-container-runtime.cdi"},
	"nvidia-experimental": {program: "nvidia-container-runtime-experimental"},
	"lunatic":             {"containerd-shim-lunatic-v1", "io.containerd.lunatic.v1"},
	"slight":              {"containerd-shim-slight-v1", "io.containerd.slight.v1"},
	"spin":                {"containerd-shim-spin-v2", "io.containerd.spin.v2"},
	"wasmedge":            {"containerd-shim-wasmedge-v1", "io.containerd.wasmedge.v1"},
	"wasmer":              {"containerd-shim-wasmer-v1", "io.containerd.wasmer.v1"},
	"wasmtime":            {"containerd-shim-wasmtime-v1", "io.containerd.wasmtime.v1"},
	"wws":                 {"containerd-shim-wws-v1", "io.containerd.wws.v1"},
}

// toolkit is where NVIDIA's operator puts its programs.
const toolkit = "/usr/local/nvidia/toolkit"

// runtimes are those of this node, for containerd, and the name of the one for pods that ask for none.
func (l *layout) runtimes() (map[string]any, string, error) {
	shim, err := l.program("containerd-shim-runc-v2")
	if err != nil {
		return nil, "", err
	}
	runc, err := l.program("runc")
	if err != nil {
		return nil, "", err
	}
	like := func(name, program string) map[string]any {
		return map[string]any{
			"runtime_type": "io.containerd.runc.v2",
			"runtime_path": shim,
			"sandboxer":    "podsandbox",
			"options": map[string]any{
				"BinaryName":    program,
				"Root":          filepath.Join(l.run, name),
				"SystemdCgroup": false,
			},
		}
	}
	all := map[string]any{"runc": like("runc", runc)}
	usual := cmp.Or(l.Settings.DefaultRuntime, "runc")
	for name, a := range alternatives {
		program, err := l.program(a.program)
		if p := filepath.Join(toolkit, a.program); err != nil && isProgram(p) {
			program, err = p, nil
		}
		switch {
		case err != nil && name == usual:
			return nil, "", fmt.Errorf("default-runtime: %s: %w", name, err)
		case err != nil:
		case a.shim == "":
			all[name] = like(name, program)
		default:
			all[name] = map[string]any{"runtime_type": a.shim, "runtime_path": program, "sandboxer": "podsandbox"}
		}
	}
	return all, usual, nil
}
