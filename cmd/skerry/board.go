package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/boards"
)

func newBoardCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "board", Short: "Show the kinds of machine that images are made for"}
	cmd.AddCommand(newBoardListCmd(), newBoardShowCmd())
	return cmd
}

func newBoardListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the boards",
		Example: "  skerry board list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := boards.All()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "BOARD\tARCH\tSLOTS\tQEMU\tWHAT IT IS") // errors come with Flush
			for _, b := range all {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.ID, b.Arch, b.Slots, map[bool]string{true: "yes", false: "no"}[b.QEMU != nil], b.Name)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newBoardShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show BOARD",
		Short:   "Show what is known about a board",
		Example: "  skerry board show x86-uefi",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := boards.Load(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), b)
			}
			return printBoard(cmd.OutOrStdout(), b)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, module lists included")
	return cmd
}

func printBoard(out io.Writer, b *boards.Board) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, a ...any) { _, _ = fmt.Fprintf(w, name+"\t"+format+"\n", a...) } // errors come with Flush
	row("board", "%s: %s", b.ID, b.Name)
	if b.Base != "" {
		row("", "like %s, but for what is said here", b.Base)
	}
	row("arch", "%s", b.Arch)
	if len(b.Match) > 0 {
		row("is", "%s", strings.Join(b.Match, ", "))
	}
	row("slots", "%s: %s", b.Slots, map[string]string{
		boards.UEFI:  "systemd-boot counts the tries of a slot",
		boards.UBoot: "U-Boot counts them, by a script and a small file",
		boards.GRUB:  "GRUB counts them, by a script and a small file, on PCs with a BIOS",
		boards.Pi:    "the firmware tries a slot once",
	}[b.Slots])
	if b.Platform != "" {
		row("platform", "%s tells the machine its node config", b.Platform)
	}
	row("kernel", "%s from %s", b.Kernel.Package, b.Kernel.Suite)
	row("", "%s", strings.Join(b.Kernel.Args, " "))
	if b.Kernel.DeviceTree != "" {
		row("", "device tree %s in the kernel image", b.Kernel.DeviceTree)
	}
	row("modules", "%d in the initramfs, %d more on the root, and what they need", len(b.Modules.Boot.All()), len(b.Modules.Node.All()))
	for _, f := range b.Firmware {
		row("firmware", "%s from %s", strings.Join(f.Files, " "), f.Package)
	}
	if b.WiFi {
		row("wifi", "wpa_supplicant and the rules for radios are in its releases")
	}
	for _, f := range b.Boot.Files {
		row("boot", "%s from %s of %s (%s)", strings.Join(f.Files, " "), f.Package, f.Suite, f.Area)
	}
	for _, t := range b.Boot.DeviceTrees {
		row("boot", "%s", t.Name())
	}
	for _, t := range b.Boot.Texts {
		row("boot", "%s", t.Name)
	}
	for _, r := range b.Boot.Raw {
		row("boot", "%s from %s at %v of the disk", r.File[strings.LastIndexByte(r.File, '/')+1:], r.Package, r.At)
	}
	for i, p := range b.Disk.Partitions {
		name := ""
		if i == 0 {
			name = "disk (" + b.Disk.Table + ")"
		}
		more := ""
		if p.Slots {
			more = ", once per slot"
		}
		if p.Grow {
			more = ", grows to the end of the disk"
		}
		row(name, "%s: %s of %v%s", p.Name, p.Kind, p.Size, more)
	}
	if q := b.QEMU; q != nil {
		row("qemu", "qemu-system-%s -machine %s -cpu %s -smp %d -m %v, firmware %s", q.System, q.Machine, q.CPU, q.CPUs, q.Memory, q.Firmware)
	}
	return w.Flush()
}
