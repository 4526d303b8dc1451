package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/fleet"
)

// fleetFile is the name of a fleet's file where none is given.
const fleetFile = "fleet.yaml"

func newFleetCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Make many machines that become one cluster when they are switched on",
		Long: "A fleet is one file that says what many machines share and who they are. Everything that they need to become one cluster is\n" +
			"made from it without a network, before any of the machines exists: switched on later, in any order, they find each other.",
	}
	cmd.AddCommand(newFleetNewCmd(), newFleetCheckCmd(), newFleetBuildCmd(), newFleetCardsCmd(), newFleetKubeconfigCmd(), newFleetTokensCmd())
	return cmd
}

func newFleetNewCmd() *cobra.Command {
	var s fleet.Sketch
	var address, gateway string
	var kinds []string
	var agents int
	cmd := &cobra.Command{
		Use:   "new [FILE]",
		Short: "Write a fleet's file with comments, to be changed",
		Long: "Write a fleet's file with comments, to be changed. The first server needs an address that stays; without --address it is the\n" +
			"tenth of the network that this computer is in.",
		Example: "  skerry fleet new --agents 19 --board rpi4 --address 192.168.1.10/24\n" +
			"  skerry fleet new --board x86-uefi=3,rpi4=20,beaglebone-black=1 --servers 3 --address 192.168.1.10/24",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := fleetFile
			if len(args) > 0 {
				name = args[0]
			}
			var err error
			if s.Boards, err = batches(kinds, s.Servers, agents, cmd.Flags().Changed("agents")); err != nil {
				return err
			}
			all := 0
			for _, b := range s.Boards {
				all += b.N
			}
			if s.Servers < 1 || all < s.Servers || all > fleet.MaxNodes {
				return fmt.Errorf("--servers, --agents, --board: write at least one server, and %d nodes at most", fleet.MaxNodes)
			}
			if s.Address, s.Gateway, err = network(address, gateway); err != nil {
				return err
			}
			data, err := fleet.New(s)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // for the secrets that may be written into it
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s: is there already; it was left as it is", name)
			}
			if err != nil {
				return err
			}
			if _, err := f.Write(data); err != nil {
				return errors.Join(err, f.Close())
			}
			if err := f.Close(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: %d servers, %d agents, the first server at %s; look through it, then: skerry fleet check %s\n", name, s.Servers, all-s.Servers, s.Address.Addr(), name)
			return err
		},
	}
	cmd.Flags().StringVar(&s.Name, "name", "home", "what the fleet is called")
	cmd.Flags().StringSliceVar(&kinds, "board", []string{"x86-uefi"}, "the kind of machine, or several as `BOARD=NUMBER`, the servers' first; skerry board list shows them")
	cmd.Flags().IntVar(&s.Servers, "servers", 1, "how many run the control plane; an odd number")
	cmd.Flags().IntVar(&agents, "agents", 2, "how many others there are")
	cmd.Flags().StringVar(&address, "address", "", "of the first server, with its prefix length, as 192.168.1.10/24")
	cmd.Flags().StringVar(&gateway, "gateway", "", "the way out of that network (default: its first address)")
	return cmd
}

// batches reads the kinds of machines: one, or several with their numbers.
func batches(kinds []string, servers, agents int, counted bool) (out []fleet.Batch, err error) {
	for _, k := range kinds {
		board, number, ok := strings.Cut(k, "=")
		n := servers + agents
		switch {
		case !ok && len(kinds) > 1:
			return nil, fmt.Errorf("--board: of several kinds of machines write how many there are of each, as %s=3", board)
		case ok && counted:
			return nil, errors.New("--agents: whoever is no server is an agent; leave it out where --board says how many machines there are")
		case ok:
			if n, err = strconv.Atoi(number); err != nil || n < 1 || n > fleet.MaxNodes {
				return nil, fmt.Errorf("--board: %q is not a board and a number, as %s=3", k, board)
			}
		}
		out = append(out, fleet.Batch{Board: board, N: max(n, 0)})
	}
	return out, nil
}

// network is the first server's address and its gateway: those given, or a guess.
func network(address, gateway string) (netip.Prefix, netip.Addr, error) {
	prefix, err := netip.ParsePrefix(address)
	if address == "" {
		prefix, err = ownNetwork()
	}
	if err != nil {
		return prefix, netip.Addr{}, fmt.Errorf("--address: %w", err)
	}
	gw := prefix.Masked().Addr().Next()
	if gateway != "" {
		if gw, err = netip.ParseAddr(gateway); err != nil {
			return prefix, gw, fmt.Errorf("--gateway: %w", err)
		}
	}
	return prefix, gw, nil
}

// ownNetwork is the tenth address of the first network that this computer is in.
func ownNetwork() (netip.Prefix, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().Is4() || !p.Addr().IsGlobalUnicast() || p.Bits() > 27 {
			continue
		}
		at := p.Masked().Addr()
		for range 10 {
			at = at.Next()
		}
		return netip.PrefixFrom(at, p.Bits()), nil
	}
	return netip.Prefix{}, errors.New("this computer is in no network that one could be taken of; write it, as 192.168.1.10/24")
}

func newFleetCheckCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "check [FILE]",
		Short:   "Say everything that is wrong with a fleet, by line and column",
		Example: "  skerry fleet check fleet.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := loadWhole(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := f.Check(); err != nil {
				return err
			}
			if quiet {
				return nil
			}
			server, err := f.Server()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "fleet %s is good: %d servers, %d agents, joined at %s\n", f.Name, len(f.Servers()), len(f.Nodes)-len(f.Servers()), server)
			return err
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but faults")
	return cmd
}

// loadWhole reads a fleet's file, and fetches its releases that a registry has.
func loadWhole(ctx context.Context, args []string) (*fleet.Fleet, error) {
	f, err := loadFleet(args)
	if err != nil {
		return nil, err
	}
	return f, f.Fetch(func(name string, trusted []ed25519.PublicKey, boards ...string) (string, error) {
		return releaseFolder(ctx, name, trusted, boards...)
	})
}

func loadFleet(args []string) (*fleet.Fleet, error) {
	name := fleetFile
	if len(args) > 0 {
		name = args[0]
	}
	return fleet.Load(name)
}
