//go:build linux

package main

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/cloud/registry"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/image/netboot"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
)

// defaultPXE is the state folder of network boot.
const defaultPXE = "out/pxe"

func newPXECmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pxe",
		Short: "Install machines over the network",
		Long: "One program answers firmware that starts over the network (DHCP, TFTP, HTTP), hands each machine its node config once,\n" +
			"and shows how far all of them are. image/netboot/PXE.md has the whole story.",
	}
	cmd.AddCommand(newPXEServeCmd(), newPXEPrepareCmd(), newPXEListCmd(), newPXEApproveCmd())
	return cmd
}

// pxeRelease says what machines are started with and who signed it.
type pxeRelease struct {
	state    string
	releases []string
	trust    trustFlags
	signWith string
}

func (p *pxeRelease) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.state, "state", defaultPXE, "folder that remembers machines, keys of this server and signed kernel images")
	cmd.Flags().StringSliceVar(&p.releases, "release", nil, "folder of a signed release, or oci://HOST/NAME:TAG; one for each architecture")
	p.trust.bind(cmd)
	signWithFlag(cmd, &p.signWith)
}

// db gives the key that signs kernel images, if the key folder is here.
func (p *pxeRelease) db() ([]uki.Signer, error) {
	dir := cmp.Or(p.trust.dir, defaultKeys)
	if _, err := os.Stat(filepath.Join(dir, "db.key")); errors.Is(err, fs.ErrNotExist) && p.signWith == "" {
		return nil, nil // no key is no fault: kept images are used
	}
	set, err := keys.Load(dir, keys.ParseCommand(p.signWith))
	if err != nil {
		return nil, err
	}
	return set.BootSigners(), nil
}

func newPXEServeCmd() *cobra.Command {
	var p pxeRelease
	o := netboot.Options{HTTP: netboot.DefaultHTTP, TLS: netboot.DefaultTLS}
	var fleetName, dhcp, router string
	var ring keyringFlags
	var dns []string
	cmd := &cobra.Command{
		Use:   "serve [--interface NAME] [--release DIR] [--fleet FILE|FOLDER]",
		Short: "Serve machines until interrupted",
		Long: "Serve machines on one interface, beside the network's DHCP server, or with --dhcp as the DHCP server itself.\n" +
			"Machines that the fleet knows by their MAC address are installed at once; others wait for `skerry pxe approve`. Needs root\n" +
			"for ports 67 and 69.",
		Example: "  sudo skerry pxe serve --fleet fleet.yaml\n" +
			"  sudo skerry pxe serve --interface eth1 --release out/release --fleet nodes/\n" +
			"  sudo skerry pxe serve --interface eth1 --release out/release --fleet nodes/ --dhcp 10.11.12.100-10.11.12.200",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := p.fleet(cmd, &o, fleetName, ring); err != nil {
				return fmt.Errorf("--fleet: %w", err)
			}
			if o.Trusted, err = p.trust.load(); err != nil {
				return err
			}
			if o.DB, err = p.db(); err != nil {
				return err
			}
			if o.DHCP, err = addressRange(dhcp, router, dns); err != nil {
				return err
			}
			if o.Releases, err = releaseFolders(cmd.Context(), append(o.Releases, p.releases...), o.Trusted); err != nil {
				return err
			}
			o.State = p.state
			out := cmd.OutOrStdout()
			o.Log = func(format string, a ...any) {
				_, _ = fmt.Fprintf(out, time.Now().Format(time.TimeOnly)+" "+format+"\n", a...)
			}
			s, err := netboot.New(o)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	p.bind(cmd)
	cmd.Flags().StringVar(&o.Interface, "interface", "", "network interface towards the machines; needed where there is more than one")
	cmd.Flags().StringVar(&fleetName, "fleet", "", "a fleet's file, or a folder of node configs, named after a machine's MAC address, serial number or UUID: 52-54-00-12-34-56.yaml")
	ring.bind(cmd)
	cmd.Flags().StringVar(&dhcp, "dhcp", "", "be the network's DHCP server, for addresses such as 10.11.12.100-10.11.12.200")
	cmd.Flags().StringVar(&router, "dhcp-router", "", "the router that DHCP tells of")
	cmd.Flags().StringSliceVar(&dns, "dhcp-dns", nil, "the name servers that DHCP tells of")
	cmd.Flags().IntVar(&o.HTTP, "http-port", o.HTTP, "port for boot files and releases")
	cmd.Flags().IntVar(&o.TLS, "https-port", o.TLS, "port for node configs")
	cmd.Flags().StringVar(&o.Status, "status", netboot.DefaultStatus, "address of the status page; \"\" for none")
	cmd.Flags().BoolVar(&o.LeaveUnknown, "leave-unknown", false, "do not start machines that are neither in the fleet nor approved: they start from their disks")
	cmd.Flags().BoolVar(&o.TrustSerials, "trust-serials", false, "believe the serial numbers, UUIDs and second network cards that machines name; anybody on the network can name them")
	cmd.Flags().BoolVar(&o.NoPXE, "no-pxe", false, "do not answer firmware that asks by PXE, only UEFI HTTP boot and iPXE")
	cmd.Flags().BoolVar(&o.NoHTTP, "no-http", false, "do not answer UEFI HTTP boot")
	return cmd
}

// fleet opens what knows the machines: nothing, a folder, or a fleet's file, which also knows releases and whose they are.
func (p *pxeRelease) fleet(cmd *cobra.Command, o *netboot.Options, name string, ring keyringFlags) error {
	o.Fleet = netboot.Nobody{}
	if name == "" {
		return nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		f := netboot.Folder(name)
		o.Fleet = f
		return f.Check()
	}
	f, err := fleet.Load(name)
	if err != nil {
		return err
	}
	inRegistry := slices.ContainsFunc(slices.Collect(maps.Values(f.Releases)), func(name string) bool { return strings.HasPrefix(name, registry.Scheme) })
	if len(p.releases) == 0 && inRegistry {
		err := f.Fetch(func(name string, trusted []ed25519.PublicKey, _ ...string) (string, error) {
			return releaseFolder(cmd.Context(), name, trusted) // whole: machines that the fleet does not know may be of any board
		})
		if err != nil {
			return err
		}
	}
	keyring, err := ring.ring(cmd)
	if err != nil {
		return err
	}
	if o.Fleet, err = netboot.OpenNodes(f, fleet.Options{Keys: keyring, Now: time.Now()}); err != nil {
		return err
	}
	for _, arch := range release.Arches {
		if dir, ok := f.Releases[arch]; ok && len(p.releases) == 0 {
			o.Releases = append(o.Releases, f.Path(dir))
		}
	}
	if p.trust.dir == "" && len(p.trust.files) == 0 && f.Keys != "" {
		p.trust.dir = f.Path(f.Keys)
	}
	return nil
}

func addressRange(text, router string, dns []string) (*netboot.Range, error) {
	if text == "" {
		if router != "" || len(dns) > 0 {
			return nil, errors.New("--dhcp-router and --dhcp-dns: are for --dhcp")
		}
		return nil, nil //nolint:nilnil // no range: another server gives addresses
	}
	r, err := netboot.ParseRange(text)
	if err != nil {
		return nil, fmt.Errorf("--dhcp: %w", err)
	}
	if router != "" {
		if r.Router, err = netip.ParseAddr(router); err != nil {
			return nil, fmt.Errorf("--dhcp-router: %w", err)
		}
	}
	for _, d := range dns {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return nil, fmt.Errorf("--dhcp-dns: %w", err)
		}
		r.DNS = append(r.DNS, a)
	}
	return &r, nil
}

func newPXEPrepareCmd() *cobra.Command {
	var p pxeRelease
	cmd := &cobra.Command{
		Use:   "prepare --release DIR",
		Short: "Make and sign kernel images for a server that has no keys",
		Long: "Make and sign the kernel images that `skerry pxe serve` gives to machines. `serve` does it by itself where the key folder\n" +
			"is; where the keys are offline, prepare the state folder there and copy it to the server.",
		Example: "  skerry pxe prepare --release out/release --keys out/keys --state pxe",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			trusted, err := p.trust.load()
			if err != nil {
				return err
			}
			db, err := p.db()
			if err != nil {
				return err
			}
			if db == nil {
				return errors.New("no key to sign with: name the key folder by --keys")
			}
			if _, err := netboot.OpenStore(p.state); err != nil {
				return err
			}
			dirs, err := releaseFolders(cmd.Context(), p.releases, trusted)
			if err != nil {
				return err
			}
			for _, dir := range dirs {
				r, err := netboot.OpenRelease(dir, trusted)
				if err != nil {
					return err
				}
				list, err := netboot.Prepare(p.state, r, db)
				if err != nil {
					return err
				}
				for _, k := range list {
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: release %s, %d MiB, signed\n", k.Board, r.Manifest().Version, len(k.EFI)>>20); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	p.bind(cmd)
	_ = cmd.MarkFlagRequired("release")
	return cmd
}

func newPXEListCmd() *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show the machines that asked to be started, and how far they are",
		Example: "  skerry pxe list\n  skerry pxe list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := netboot.OpenStore(state)
			if err != nil {
				return err
			}
			list, err := s.List()
			if err != nil {
				return err
			}
			warnings, err := s.Warnings()
			if err != nil {
				return err
			}
			to := cmd.OutOrStdout()
			if asJSON {
				to = cmd.ErrOrStderr()
			}
			for _, w := range warnings {
				if _, err := fmt.Fprintf(to, "%s %s\n", w.Since.Local().Format(time.DateTime), w.Text); err != nil {
					return err
				}
			}
			if asJSON {
				if list == nil {
					list = []*netboot.Machine{}
				}
				return printJSON(cmd.OutOrStdout(), list)
			}
			return printMachines(cmd.OutOrStdout(), list)
		},
	}
	cmd.Flags().StringVar(&state, "state", defaultPXE, "state folder of the server")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all that is known, as JSON")
	return cmd
}

func printMachines(out io.Writer, list []*netboot.Machine) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no machine has asked yet")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "MACHINE\tSERIAL\tARCH\tNODE\tSTAGE\tLAST HEARD")
	for _, m := range list {
		stage := m.Stage
		if m.Total > 0 && m.Done < m.Total {
			stage += fmt.Sprintf(" (%d %%)", 100*m.Done/m.Total)
		}
		cells := []string{m.MAC, m.Serial, strings.TrimSpace(m.Arch + " " + m.Firmware), m.Node, stage, m.Last.Local().Format(time.DateTime)}
		for i, c := range cells {
			if c == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
		if text := m.Trouble(time.Now()); text != "" {
			_, _ = fmt.Fprintf(w, "  %s\n", text)
		}
	}
	return w.Flush()
}

func newPXEApproveCmd() *cobra.Command {
	var state, config string
	var a netboot.Approval
	cmd := &cobra.Command{
		Use:   "approve MAC...",
		Short: "Let machines be installed, or installed anew",
		Long: "Let a machine that waits be installed: with the node config named, or as the node of the fleet that it says it is. That node\n" +
			"is this machine then, and no other any more. A machine is installed once; --reinstall allows it once more, over what is on its\n" +
			"disk. Works beside a running server or without one: it changes the state folder.",
		Example: "  skerry pxe approve 52:54:00:12:34:56 --config node.yaml\n  skerry pxe approve 52:54:00:12:34:56 52:54:00:12:34:57\n" +
			"  skerry pxe approve 52:54:00:12:34:56 --reinstall",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var macs []string
			for _, text := range args {
				mac, ok := netboot.NormalMAC(text)
				if !ok {
					return fmt.Errorf("%q: is not a hardware address, as in 52:54:00:12:34:56", text)
				}
				macs = append(macs, mac)
			}
			if config != "" {
				data, err := os.ReadFile(config)
				if err != nil {
					return err
				}
				a.Config, a.Name = data, config
			}
			s, err := netboot.OpenStore(state)
			if err != nil {
				return err
			}
			var errs []error
			for _, mac := range macs {
				m, err := s.Approve(mac, a)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				text := "is installed as soon as it starts over the network"
				if m.Stage == netboot.StageWaiting {
					text = "is installed now"
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", m.MAC, text)
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&state, "state", defaultPXE, "state folder of the server")
	cmd.Flags().StringVar(&config, "config", "", "node config for the machine")
	cmd.Flags().BoolVar(&a.Again, "reinstall", false, "install it once more, over what is on its disk")
	return cmd
}
