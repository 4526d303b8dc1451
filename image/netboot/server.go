// Package netboot starts machines over the network: it installs them, or runs them from memory, and shows how far each is.
//
// A machine's firmware asks by DHCP and gets the name of a boot file (dhcp.go): a kernel image of the release with an installer
// in its initramfs (boot.go), by TFTP or HTTP. The installer (image/install) looks for the server, trusts it by the pin on its
// command line, and asks what to do (api.go). Release files come by plain HTTP, since they are signed; the node config, with
// its secrets, comes once, over TLS, to one machine: the first that asks by the MAC address of the fleet's node, or the one that a
// person approved. What is known of each machine is a file of the state folder (machines.go), and that file is also the marker
// that keeps a machine from being installed twice, and a node from being given to two.
package netboot

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/netboot/tftp"
	"github.com/skerry-os/skerry/image/uki"
)

// Options are what a person decides about a server.
type Options struct {
	Interface string   // towards the machines
	Releases  []string // folders, one for each architecture
	Trusted   []ed25519.PublicKey
	DB        []uki.Signer // sign kernel images; nil: kept ones, or unsigned
	Fleet     Fleet
	State     string // folder
	DHCP      *Range // nil: another server gives addresses
	HTTP, TLS int    // ports; 0 picks a free one
	Status    string // address of the status page; "" for none
	// LeaveUnknown keeps machines that nobody has named out, so that they start from their disks. Otherwise they start the
	// installer, which waits, and changes nothing.
	LeaveUnknown bool
	// TrustSerials believes what machines say of themselves: the first that names a node's serial number, UUID or second network
	// card is that node. Otherwise a person says so.
	TrustSerials bool
	// NoPXE, NoHTTP: do not answer firmware that asks that way.
	NoPXE, NoHTTP bool
	Log           func(format string, a ...any)
}

// Server is ready to run.
type Server struct {
	Options
	*Store
	releases []*Release
	kernels  []*Kernel
	ca       *Authority
	self     netip.Prefix
	dhcp     *dhcp
	bios     []byte // iPXE
	noBIOS   error
	httpPort int
	tlsPort  int
	page     string // address of the status page

	// neighbour gives the hardware address behind an IP address of the interface.
	neighbour func(netip.Addr) (string, error)

	mu      sync.Mutex
	changed chan struct{}      // closed when a machine changed
	alarms  map[string]Warning // about the network as a whole, by what they are of
}

// Ports that are used unless others are named.
const (
	DefaultHTTP   = 6480
	DefaultTLS    = 6481
	DefaultStatus = "127.0.0.1:6482"
)

// mostMachines bounds the state folder: whoever makes up hardware addresses must not fill the disk.
const mostMachines = 4096

// New checks everything that can be wrong before a machine asks.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	store, err := OpenStore(o.State)
	if err != nil {
		return nil, err
	}
	s := &Server{Options: o, Store: store, changed: make(chan struct{}), alarms: map[string]Warning{}}
	if s.Interface == "" {
		if s.Interface, err = pickInterface(); err != nil {
			return nil, err
		}
	}
	if s.ca, err = OpenAuthority(o.State); err != nil {
		return nil, err
	}
	if s.self, err = addressOf(s.Interface); err != nil {
		return nil, err
	}
	var errs []error
	archs := map[string]string{}
	for _, dir := range o.Releases {
		r, err := OpenRelease(dir, o.Trusted)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if other := archs[r.Manifest().Arch]; other != "" {
			errs = append(errs, fmt.Errorf("%s: is for %s, and so is %s; name one of them", dir, r.Manifest().Arch, other))
			continue
		}
		archs[r.Manifest().Arch] = dir
		list, err := Prepare(o.State, r, o.DB)
		errs = append(errs, err)
		s.releases, s.kernels = append(s.releases, r), append(s.kernels, list...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(s.kernels) == 0 {
		return nil, errors.New("no release: name the folder of one with --release (skerry release build makes it)")
	}
	s.bios, s.noBIOS = loader(s.releases)
	s.dhcp = &dhcp{iface: s.Interface, self: s.self, boot: s.bootFile, log: s.Log, warn: s.warn}
	if o.DHCP != nil {
		if s.dhcp.pool, err = openPool(*o.DHCP, s.self, filepath.Join(o.State, "leases.json")); err != nil {
			return nil, err
		}
	}
	s.neighbour = func(a netip.Addr) (string, error) { return neighbourOf(s.Interface, a) }
	return s, nil
}

// addressOf gives the interface's first IPv4 address.
func addressOf(name string) (netip.Prefix, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		var have []string
		if all, err := net.Interfaces(); err == nil {
			for _, i := range all {
				have = append(have, i.Name)
			}
		}
		return netip.Prefix{}, fmt.Errorf("interface %q: %w; this host has %s", name, err, strings.Join(have, ", "))
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			ip, _ := netip.AddrFromSlice(n.IP.To4())
			bits, _ := n.Mask.Size()
			return netip.PrefixFrom(ip, bits), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("interface %s: has no IPv4 address; give it one: ip address add 10.11.12.1/24 dev %s", name, name)
}

// probeFor is how long other DHCP servers get to answer.
const probeFor = 3 * time.Second

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if err := s.setWarnings(nil); err != nil { // of a run that ended without a word
		return err
	}
	defer func() { _ = s.setWarnings(nil) }()
	if err := s.lookAround(ctx); err != nil {
		return err
	}
	tlsConfig, err := s.ca.serverTLS()
	if err != nil {
		return err
	}
	self := net.IP(s.self.Addr().AsSlice())
	web, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: self, Port: s.HTTP})
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	s.httpPort = web.Addr().(*net.TCPAddr).Port
	secure, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: self, Port: s.TLS})
	if err != nil {
		return errors.Join(fmt.Errorf("https: %w", err), web.Close())
	}
	s.tlsPort = secure.Addr().(*net.TCPAddr).Port
	files, err := net.ListenUDP("udp4", &net.UDPAddr{IP: self, Port: 69})
	if err != nil {
		return errors.Join(fmt.Errorf("tftp: %w", err), web.Close(), secure.Close())
	}
	var conns []*net.UDPConn
	for _, port := range []int{dhcpv4.ServerPort, bootServerPort} {
		c, err := s.dhcp.listen(port)
		if err != nil {
			return errors.Join(err, web.Close(), secure.Close(), files.Close())
		}
		conns = append(conns, c)
	}
	services := []func(context.Context) error{
		func(ctx context.Context) error { return s.serveWeb(ctx, web, s.bootHandler(), false) },
		func(ctx context.Context) error {
			return s.serveWeb(ctx, tls.NewListener(secure, tlsConfig), s.apiHandler(), false)
		},
		func(ctx context.Context) error { return (&tftp.Server{Open: s.tftpFile, Log: s.Log}).Serve(ctx, files) },
		func(ctx context.Context) error { return s.dhcp.serve(ctx, conns[0], dhcpv4.ServerPort) },
		func(ctx context.Context) error { return s.dhcp.serve(ctx, conns[1], bootServerPort) },
		s.listen,
	}
	six := &dhcp6{iface: s.Interface, onDisk: s.onDisk, log: s.Log}
	if conn, err := six.listen(); err != nil {
		s.Log("dhcp: IPv6: %v; installed machines whose firmware asks by IPv6 before it starts their disk wait two minutes for an answer", err)
	} else {
		services = append(services, func(ctx context.Context) error { return six.serve(ctx, conn) })
	}
	if s.Status != "" {
		l, err := net.Listen("tcp", s.Status)
		if err != nil {
			return errors.Join(fmt.Errorf("status page: %w", err), web.Close(), secure.Close(), files.Close(), conns[0].Close(), conns[1].Close())
		}
		s.mu.Lock()
		s.page = l.Addr().String()
		s.mu.Unlock()
		services = append(services, func(ctx context.Context) error { return s.serveWeb(ctx, l, s.pageHandler(), true) })
	}
	s.greet()
	return together(ctx, services)
}

// together runs all until one ends, and then waits for the others.
func together(ctx context.Context, services []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(services))
	var wg sync.WaitGroup
	for i, f := range services {
		wg.Go(func() {
			defer cancel()
			errs[i] = f(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) greet() {
	how := "beside the network's DHCP server"
	if s.DHCP != nil {
		how = fmt.Sprintf("as DHCP server for %v-%v", s.DHCP.From, s.DHCP.To)
	}
	s.Log("serving on %s, %v, %s; http %d, https %d, tftp 69", s.Interface, s.self, how, s.httpPort, s.tlsPort)
	for _, k := range s.kernels {
		word := "signed"
		if !k.Signed {
			word = "NOT signed: firmware with Secure Boot refuses it; name the key folder with --keys, or run skerry pxe prepare where it is"
		}
		s.Log("board %s: release %s, %d MiB, %s", k.Board, k.Release.Manifest().Version, len(k.EFI)>>20, word)
	}
	if f, ok := s.Fleet.(interface{ Advice() []string }); ok {
		for _, text := range f.Advice() {
			s.Log("%s", text)
		}
	}
	if s.page != "" {
		s.Log("status page: http://%s/", s.page)
	}
}

// lookAround finds other DHCP servers: in the way of ours, or missing.
func (s *Server) lookAround(ctx context.Context) error {
	others, err := probe(ctx, s.Interface, s.self.Addr(), probeFor)
	switch {
	case ctx.Err() != nil:
		return nil //nolint:nilerr // the end, not a fault
	case err != nil:
		return err
	case s.DHCP != nil && len(others) > 0:
		return fmt.Errorf("%s: a DHCP server answers already: %s; two of them give one address to two machines. Leave out --dhcp to work beside it, or turn it off", s.Interface, strings.Join(others, ", "))
	case s.DHCP == nil && len(others) == 0:
		s.warn("dhcp", "no DHCP server answers on "+s.Interface+": machines get no address; start one, or add --dhcp FROM-TO to be it")
	case len(others) > 1:
		s.warn("dhcp", manyDHCP(s.Interface, others))
	}
	return nil
}

// note changes a machine and tells whoever watches.
func (s *Server) note(mac string, f func(*Machine) error) (*Machine, error) {
	m, err := s.Change(mac, func(m *Machine) error {
		if m.Stage == "" && s.full() {
			return fmt.Errorf("%d machines are known already; remove those that are none from %s", mostMachines, filepath.Join(s.dir, machinesDir))
		}
		m.Last = time.Now().UTC()
		return f(m)
	})
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	return m, err
}

func (s *Server) full() bool {
	names, err := filepath.Glob(filepath.Join(s.dir, machinesDir, "*.json"))
	return err == nil && len(names) >= mostMachines
}

// watch gives a channel that is closed at the next change.
func (s *Server) watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// toDisk is the boot file of an installed machine whose firmware asks the network first. There is none of that name: an answer that it
// is missing ends the question, where silence would keep the firmware waiting for a minute and more, by each protocol that it knows.
const toDisk = "from-disk"

// bootFile decides what a client is started with: "" to be silent, so that others may answer, or the firmware goes on to its disk.
func (s *Server) bootFile(c Client) string {
	if c.By == Installer {
		return fmt.Sprintf("https://%s", net.JoinHostPort(s.self.Addr().String(), strconv.Itoa(s.tlsPort)))
	}
	if c.By == PXE && s.NoPXE || c.By == HTTP && s.NoHTTP {
		return ""
	}
	var k *Kernel
	var why, before string
	m, err := s.note(c.MAC, func(m *Machine) error {
		before = m.Stage + string(m.By) + m.Error
		k, why = s.choose(c, m)
		m.By, m.Arch, m.Firmware = c.By, c.Arch, c.Firmware
		if c.UUID != "" {
			m.UUID = c.UUID
		}
		if k == nil {
			if m.Stage == "" {
				m.Stage = StageSeen
			}
			if why != "" {
				m.Error = why
			}
			return nil
		}
		m.Stage, m.Done, m.Total, m.Error = StageBooting, 0, 0, ""
		return nil
	})
	if err != nil {
		s.Log("%s: %v", c.MAC, err)
		return ""
	}
	news := before != m.Stage+string(m.By)+m.Error // firmware asks more than once
	if k == nil {
		if why != "" && news {
			s.Log("%s: %s", c.MAC, why)
		}
		if why != "" {
			return ""
		}
		return s.toDisk(c)
	}
	if news {
		s.Log("%s: %s, %s %s: board %s", c.MAC, c.By, c.Arch, c.Firmware, k.Board)
	}
	base := fmt.Sprintf("http://%s/", net.JoinHostPort(s.self.Addr().String(), strconv.Itoa(s.httpPort)))
	switch {
	case c.By == IPXE:
		return base + "boot/" + k.Board + "-" + c.Firmware + ".ipxe"
	case c.By == HTTP:
		return base + "boot/" + k.Board + ".efi"
	case c.Firmware == protocol.BIOS:
		return "undionly.kpxe"
	}
	return k.Board + ".efi"
}

// toDisk sends an installed machine to its disk at once.
func (s *Server) toDisk(c Client) string {
	base := fmt.Sprintf("http://%s/boot/", net.JoinHostPort(s.self.Addr().String(), strconv.Itoa(s.httpPort)))
	switch c.By {
	case IPXE:
		return base + toDisk + ".ipxe"
	case HTTP:
		return base + toDisk + ".efi"
	}
	return toDisk
}

// choose gives the kernel for a client, or why there is none; no reason is a machine that is to start from its disk.
func (s *Server) choose(c Client, m *Machine) (*Kernel, string) {
	if c.Arch == "" {
		return nil, fmt.Sprintf("its architecture is %d (%s), and releases are made for amd64 and arm64 alone: take the network out of its boot order, or switch its firmware to one of them", uint16(c.Code), c.Code)
	}
	if !m.Installed.IsZero() {
		return nil, ""
	}
	board := ""
	if !m.Approved {
		who := m.claim()
		who.UUID = cmp.Or(c.UUID, m.UUID)
		n, known, err := s.Fleet.Find(who)
		if err == nil && !known && s.LeaveUnknown && (m.told() || !s.Fleet.BySaying()) {
			return nil, leftAlone + m.MAC + " --config FILE"
		}
		if err == nil {
			board = n.Board
			m.Node, m.Key = n.Name, n.Key
		}
	}
	if c.By == PXE && c.Firmware == protocol.BIOS && s.noBIOS != nil {
		return nil, "its BIOS needs iPXE, which is not here: " + s.noBIOS.Error()
	}
	if board == "" {
		if k := defaultBoard(s.kernels, c.Arch); k != nil {
			return k, ""
		}
		return nil, fmt.Sprintf("no release for %s is served; add one with --release", c.Arch)
	}
	for _, k := range s.kernels {
		if _, has := k.Release.Manifest().Boards[board]; has && k.Board == startedBy(board) {
			return k, ""
		}
	}
	return nil, fmt.Sprintf("the fleet says it is a %s, and no release served has that board; add one with --release", board)
}

// tftpFile opens what firmware asks for by TFTP.
func (s *Server) tftpFile(name string, _ netip.AddrPort) (tftp.File, int64, error) {
	name = path.Clean("/" + name)[1:]
	if name == toDisk {
		return nil, 0, fmt.Errorf("this machine is installed and starts from its disk: %w", tftp.ErrNone)
	}
	data, err := s.bootBytes(name)
	if err != nil {
		return nil, 0, err
	}
	return bytesFile{bytes.NewReader(data)}, int64(len(data)), nil
}

// bootBytes is a boot file by its name.
func (s *Server) bootBytes(name string) ([]byte, error) {
	if name == "undionly.kpxe" && s.noBIOS == nil {
		return s.bios, nil
	}
	if name == toDisk+".ipxe" {
		return []byte("#!ipxe\necho Skerry: this machine is installed and starts from its disk.\nexit 1\n"), nil
	}
	for _, k := range s.kernels {
		switch strings.TrimPrefix(name, k.Board) {
		case ".efi":
			return k.EFI, nil
		case ".vmlinuz":
			return k.Linux, nil
		case ".initrd":
			return k.Initrd, nil
		case "-" + protocol.UEFI + ".ipxe":
			// One signed file, which firmware checks if it checks anything.
			remedy := "If it was refused (Permission denied), this firmware has Secure Boot on and not our keys: clear its keys (setup mode) or switch Secure Boot off."
			if !k.Signed {
				remedy = "If it was refused (Permission denied), this firmware has Secure Boot on and the kernel image is not signed: start skerry pxe serve with the key folder, by --keys."
			}
			return ipxeScript("chain --autofree "+k.Board+".efi", remedy), nil
		case "-" + protocol.BIOS + ".ipxe":
			return ipxeScript("imgfree && kernel "+k.Board+".vmlinuz "+k.Cmdline+" && initrd "+k.Board+".initrd && boot", "If memory was short, the machine needs 2 GiB."), nil
		}
	}
	return nil, fmt.Errorf("%s: is not served: %w", name, fs.ErrNotExist)
}

// How often iPXE tries, and how long it waits before it tries again.
const (
	ipxeTries = 5
	ipxeWait  = 10 // seconds
)

// ipxeScript tries a command again and again, for a cable that comes back, and then lets the firmware go on with its next entry.
// It says what is wrong, and never ends at a prompt: nobody may be near. It needs no command that small builds of iPXE lack.
func ipxeScript(command, remedy string) []byte {
	var b strings.Builder
	b.WriteString("#!ipxe\n")
	for try := range ipxeTries {
		fmt.Fprintf(&b, "%s ||\necho Skerry: the installer did not start, try %d of %d; the line above says why.\necho %s\n", command, try+1, ipxeTries, remedy)
		b.WriteString("echo If the link was lost, look at the cable, and whether skerry pxe serve runs.\n")
		if try+1 < ipxeTries {
			fmt.Fprintf(&b, "echo Again in %d seconds.\nsleep %d\n", ipxeWait, ipxeWait)
		}
	}
	b.WriteString("echo Skerry: giving up; the firmware goes on with its next boot entry. Restart the machine to try again.\nsleep 10\nexit 1\n")
	return []byte(b.String())
}

// bootHandler serves boot files and releases. Nothing in them is secret, and all of it is signed.
func (s *Server) bootHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot/{name}", func(w http.ResponseWriter, r *http.Request) {
		data, err := s.bootBytes(r.PathValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream") // some firmware knows .efi files by it
		if strings.HasSuffix(r.URL.Path, ".efi") {
			w.Header().Set("Content-Type", "application/efi")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	for _, rel := range s.releases {
		allowed := map[string]bool{"manifest.json": true, "manifest.sig": true}
		for _, f := range rel.Manifest().AllFiles() {
			allowed[f.Path] = true
		}
		prefix := "/release/" + rel.path() + "/"
		files := http.FileServerFS(rel.files)
		mux.Handle("GET "+prefix, http.StripPrefix(strings.TrimSuffix(prefix, "/"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !allowed[strings.TrimPrefix(r.URL.Path, "/")] {
				http.NotFound(w, r)
				return
			}
			name := strings.TrimPrefix(r.URL.Path, "/")
			f, err := rel.files.Open(name)
			if err != nil { // somebody took it away while we serve
				s.warn("release "+rel.path()+"/"+name, fmt.Sprintf("%s: %v; put the release back, or serve another one with --release", rel.dir, err))
				http.Error(w, fmt.Sprintf("the server cannot read %s of release %s; put the release's folder back there, or serve another one with --release", name, rel.Manifest().Version), http.StatusNotFound)
				return
			}
			_ = f.Close()
			s.warn("release "+rel.path()+"/"+name, "")
			files.ServeHTTP(w, r)
		})))
	}
	return mux
}
