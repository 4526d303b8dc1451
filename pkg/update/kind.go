package update

import (
	"errors"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
)

// Kinds are what Kind may say.
var Kinds = []string{"expired", "replayed", "altered", "signature", "downgrade", "debug", "room", "unreachable", "untrusted", "other"}

// Kind puts a refusal in a word, for metrics; "" is none.
func Kind(err error) string {
	switch {
	case err == nil, errors.Is(err, repository.ErrUpToDate):
		return ""
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		return "expired"
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		return "replayed"
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}), errors.Is(err, release.ErrUntrusted):
		return "signature"
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}), errors.Is(err, &metadata.ErrDownloadLengthMismatch{}):
		return "altered"
	case errors.Is(err, release.ErrRollback):
		return "downgrade"
	case errors.Is(err, ErrDebug):
		return "debug"
	case errors.Is(err, ErrRoom):
		return "room"
	case errors.Is(err, repository.ErrUnreachable):
		return "unreachable"
	case errors.Is(err, repository.ErrUntrusted):
		return "untrusted"
	}
	return "other"
}

// Attack says whether a kind is one that a source which does what it should never causes.
func Attack(kind string) bool {
	switch kind {
	case "expired", "replayed", "altered", "signature", "downgrade", "debug", "untrusted":
		return true
	}
	return false
}
