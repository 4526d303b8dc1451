package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/pkg/size"
)

// apiPort is where a server serves the Kubernetes API.
const apiPort = 6443

// defaultVM is the folder of the machine that `make run` starts.
const defaultVM = "out/run/vm"

func newVMCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Try an image in QEMU",
		Long: "Start an image as a virtual machine, with the firmware that a real machine has. The image itself is never written: the\n" +
			"machine's disk is a layer above it, and stays for the next start until the image changes.",
	}
	cmd.AddCommand(newVMStartCmd(), newVMWaitCmd(), newVMConsoleCmd(), newVMStatusCmd(), newVMStopCmd())
	return cmd
}

func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", defaultVM, "the machine's folder")
}

func newVMStartCmd() *cobra.Command {
	var board, memory, disk, accel string
	o := vm.Options{Detach: true, Forwards: []vm.Forward{{Guest: apiPort}}}
	cmd := &cobra.Command{
		Use:     "start IMAGE",
		Short:   "Start a machine in the background",
		Long:    "Start a machine from a raw image. It runs on after this command; its Kubernetes API is at a port of this host's loopback.",
		Example: "  skerry vm start out/skerry.img && skerry vm wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := boards.Load(board)
			if err != nil {
				return err
			}
			if b.QEMU == nil {
				return fmt.Errorf("board %s: QEMU does not know this machine", board)
			}
			o.Image, o.Board, o.Accel = args[0], *b.QEMU, vm.Accel(accel)
			for _, s := range []struct {
				flag, text string
				to         *size.Bytes
			}{{"--memory", memory, &o.Memory}, {"--disk", disk, &o.Disk}} {
				if s.text == "" {
					continue
				}
				if *s.to, err = size.Parse(s.text); err != nil {
					return fmt.Errorf("%s: %w", s.flag, err)
				}
			}
			v, err := vm.Start(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printMachine(cmd.OutOrStdout(), v)
		},
	}
	dirFlag(cmd, &o.Dir)
	f := cmd.Flags()
	f.StringVar(&board, "board", "x86-uefi", "the kind of machine")
	f.StringVar(&memory, "memory", "", "its memory, such as 4GiB (default: the board's)")
	f.StringVar(&disk, "disk", "", "its disk, such as 32GiB; the data partition grows to fill it (default 8GiB)")
	f.IntVar(&o.CPUs, "cpus", 0, "its processors (default: the board's)")
	f.IntVar(&o.Forwards[0].Host, "api-port", 0, "the port of this host that leads to its Kubernetes API (default: a free one)")
	f.StringVar(&accel, "accel", string(vm.Auto), "auto, kvm or tcg (emulation); auto tries whether KVM works")
	f.BoolVar(&o.Restrict, "offline", false, "leave the machine no way to any network but the port above")
	f.BoolVar(&o.TPM, "tpm", false, "give it a TPM 2.0")
	f.BoolVar(&o.Fresh, "fresh", false, "forget what an earlier start left on its disk")
	return cmd
}

func printMachine(w io.Writer, v *vm.VM) error {
	accel, why := v.Accel()
	how := "KVM"
	if accel == vm.TCG {
		how = "emulated processor, slow"
		if why != "" {
			how += ": " + why
		}
	}
	api, err := v.Addr(apiPort)
	if err != nil {
		api = "not reachable from here"
	}
	_, err = fmt.Fprintf(w, "machine   process %d, up %v (%s)\napi       %s\nconsole   %s\n",
		v.PID(), time.Since(v.Started()).Round(time.Second), how, api, v.Console.Path())
	return err
}

func newVMWaitCmd() *cobra.Command {
	var dir string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "wait",
		Short:   "Show a machine's start, stage by stage, until its node is Ready",
		Example: "  skerry vm wait --timeout 5m",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := vm.Open(dir)
			if err != nil {
				return err
			}
			if m := saidReady.FindString(v.Text()); m != "" && v.Running() {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), m)
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("the node is not Ready after %v", limit))
			defer cancel()
			p := newProgress(cmd.OutOrStdout(), v.Started())
			if err := v.Lines(ctx, p.line); err != nil {
				p.abandon()
				return fmt.Errorf("%w; the console log is %s", err, v.Console.Path())
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().DurationVar(&limit, "timeout", 15*time.Minute, "give up after this time")
	return cmd
}

func newVMStatusCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say whether a machine runs and how far it is",
		Example: "  skerry vm status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := running(dir)
			if err != nil {
				return err
			}
			if err := printMachine(cmd.OutOrStdout(), v); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "last said %s\n", lastStep(v.Text()))
			return err
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}

// running opens a machine that must be on.
func running(dir string) (*vm.VM, error) {
	v, err := vm.Open(dir)
	if err == nil && !v.Running() {
		err = fmt.Errorf("%s: %w", dir, vm.ErrNotRunning)
	}
	return v, err
}

func newVMStopCmd() *cobra.Command {
	var dir string
	var plug bool
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "stop",
		Short:   "Shut a machine down",
		Long:    "Press the machine's power button and wait until it has shut down in order. --plug pulls the plug instead.",
		Example: "  skerry vm stop\n  skerry vm stop --plug",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := running(dir)
			if errors.Is(err, vm.ErrNotRunning) {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: the machine is off\n", dir)
				return err
			}
			if err != nil {
				return err
			}
			if plug {
				v.PowerCut()
				return nil
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("it took longer than %v; see %s, or pull the plug: skerry vm stop --plug", limit, v.Console.Path()))
			defer cancel()
			if err := v.Stop(ctx); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: the machine has shut down\n", dir)
			return err
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&plug, "plug", false, "pull the plug, as a power failure does")
	cmd.Flags().DurationVar(&limit, "timeout", 2*time.Minute, "how long an orderly shutdown may take")
	return cmd
}

func newVMConsoleCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "console",
		Short:   "Show a machine's serial console, and type on it",
		Example: "  skerry vm console",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := running(dir)
			if err != nil {
				return err
			}
			return attach(cmd.Context(), v, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}

// leave is Ctrl-], telnet's key for the same.
const leave = 0x1d

// attach shows what the machine said last, then joins the terminal and its serial port.
func attach(ctx context.Context, v *vm.VM, in io.Reader, out io.Writer) error {
	con, err := v.Console.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = con.Close() }()
	defer context.AfterFunc(ctx, func() { _ = con.Close() })()
	text := v.Text()
	_, _ = fmt.Fprintf(out, "%s\n-- %s; Ctrl-] leaves --\n", text[max(0, len(text)-2000):], filepath.Dir(v.Console.Path()))
	restore, err := rawTerminal(in)
	if err != nil {
		return err
	}
	defer restore()
	go func() { // ends with the process, at the latest: a read from a terminal cannot be interrupted
		b := make([]byte, 256)
		for {
			n, err := in.Read(b)
			for i, c := range b[:n] {
				if c == leave {
					n, err = i, io.EOF
					break
				}
			}
			if _, werr := con.Write(b[:n]); err != nil || werr != nil {
				_ = con.Close()
				return
			}
		}
	}()
	_, err = io.Copy(out, con)
	_, _ = fmt.Fprintln(out)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
