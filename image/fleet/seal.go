package fleet

import (
	"fmt"
	"strings"

	"filippo.io/age"
)

// checkRecipient refuses what age cannot encrypt to.
func checkRecipient(text string) error {
	if _, err := age.ParseRecipients(strings.NewReader(text)); err != nil {
		return fmt.Errorf("%q is not a recipient of age, as in age1…; age-keygen makes one", text)
	}
	return nil
}
