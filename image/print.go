package image

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/size"
)

// Print writes the plan for people.
func (p *Plan) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(format string, a ...any) { _, _ = fmt.Fprintf(w, format+"\n", a...) } // errors come with Flush
	row("board\t%s (%s)", p.Board, p.Arch)
	row("release\t%s, manifest %.16s", p.Version, p.Manifest)
	if p.Debug {
		row("\t%s", machine.DebugNotice)
	}
	row("node config\t%.16s", p.Config)
	row("secure boot\t%s", map[bool]string{true: "keys are brought along for firmware in setup mode", false: "no keys are brought along"}[p.SecureBoot])
	row("disk\t%v, %v, %v of it written", size.Bytes(p.Size), p.GUID, size.Bytes(p.Written()).Rounded())
	row("")
	row("PARTITION\tKIND\tSTART\tSIZE\tGUID\tSERIAL")
	for _, q := range p.Partitions {
		row("%s\t%s\t%v\t%v\t%v\t%s", q.Name, q.Kind, size.Bytes(q.Start), size.Bytes(q.Size), q.GUID, q.Serial)
	}
	row("")
	row("OFFSET\tSIZE\tWHERE\tWHAT\tFROM\tSHA256")
	for _, e := range p.Extents {
		row("%d\t%d\t%s\t%s\t%s\t%.16s", e.Offset, e.Size, e.Where, e.What, e.Source, e.SHA256)
	}
	return w.Flush()
}
