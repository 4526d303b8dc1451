package fleet

import (
	"github.com/skerry-os/skerry/image"
)

// Configs gives what stands on a node's config partition, for machines that are installed without a card. The fleet's secrets are
// made where they are missing, as Build makes them.
func Configs(f *Fleet, o Options) (func(n *Node) (image.Config, error), error) {
	releases, err := f.open()
	if err != nil {
		return nil, err
	}
	if o.Keys == nil {
		o.Keys = new(Keyring)
	}
	s, err := f.load(o.Keys)
	if err != nil {
		return nil, err
	}
	from := o.Now
	for _, rel := range releases {
		if t := rel.Manifest().BuildTime; t.Before(from) {
			from = t // a machine without a clock of its own begins there
		}
	}
	changes, err := f.complete(s, from, o.Now)
	if err != nil {
		return nil, err
	}
	if _, err := f.save(s, o.Keys, len(changes) > 0); err != nil {
		return nil, err
	}
	seedData, err := f.seed(s)
	if err != nil {
		return nil, err
	}
	return func(n *Node) (image.Config, error) { return f.cardConfig(s, n, f.First(n), seedData) }, nil
}
