package azure

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// blobs is what the actions on blobs begin with. They are data actions.
const blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"

// permission is what one role gives: learn.microsoft.com/rest/api/authorization/permissions.
type permission struct {
	Actions        []string `json:"actions"`
	NotActions     []string `json:"notActions"`
	DataActions    []string `json:"dataActions"`
	NotDataActions []string `json:"notDataActions"`
}

// gives says whether the role has the action in it. Patterns have stars and are of no case.
func (p permission) gives(action string) bool {
	yes, no := p.Actions, p.NotActions
	if strings.HasPrefix(action, blobs) {
		yes, no = p.DataActions, p.NotDataActions
	}
	like := func(pattern string) bool {
		ok, err := regexp.MatchString("(?i)^"+strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")+"$", action)
		return ok && err == nil
	}
	return slices.ContainsFunc(yes, like) && !slices.ContainsFunc(no, like)
}

// MissingRights is what the credentials lack.
type MissingRights struct {
	Scopes  []string // where
	Actions []string // such as Microsoft.Compute/images/write; as many
}

func (m MissingRights) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "azure: the credentials may not %s; give them", strings.Join(m.Actions, ", "))
	said := map[string]bool{}
	for i, a := range m.Actions {
		if line := fmt.Sprintf("\naz role assignment create --role %q --scope %s --assignee WHO", role(a), m.Scopes[i]); !said[line] {
			said[line] = true
			b.WriteString(line)
		}
	}
	return b.String()
}

// role is the built-in role with the fewest rights that holds an action.
func role(action string) string {
	switch {
	case strings.HasPrefix(action, "Microsoft.Storage/storageAccounts/blobServices/"):
		return "Storage Blob Data Contributor"
	case strings.HasPrefix(action, "Microsoft.Storage/"):
		return "Storage Account Contributor"
	case strings.HasPrefix(action, "Microsoft.Compute/galleries/"):
		return "Compute Gallery Artifacts Publisher"
	}
	return "Contributor"
}

func roleFor(action string) string {
	return fmt.Sprintf("%s is in the role %q", action, role(action))
}

// preflight asks for every right that will be needed, before anything is made.
func (p *Publisher) preflight(ctx context.Context, o *Options, store *storageAccount) error {
	group := []string{"Microsoft.Compute/images/read", "Microsoft.Compute/images/write"}
	data := []string{"Microsoft.Storage/storageAccounts/blobServices/containers/read", "Microsoft.Storage/storageAccounts/blobServices/containers/write", blobs + "read", blobs + "write"}
	if o.Gallery != "" {
		const g = "Microsoft.Compute/galleries/"
		group = []string{g + "read", g + "images/read", g + "images/write", g + "images/versions/read", g + "images/versions/write"}
		data = append(data, "Microsoft.Storage/storageAccounts/listKeys/action", "Microsoft.Storage/storageAccounts/write") // a version is made of a VHD with them
		if len(o.Share) > 0 {
			group = append(group, g+"share/action")
		}
	}
	var m MissingRights
	for i, scope := range []string{p.id(o.Group), store.ID} {
		want := [][]string{group, data}[i]
		var in struct {
			Value []permission `json:"value"`
		}
		if err := p.get(ctx, scope+"/providers/Microsoft.Authorization/permissions", "2022-04-01", &in); err != nil {
			if status(err) == http.StatusForbidden {
				p.log("rights on %s are not looked at beforehand: %v", scope, short(err))
				continue
			}
			return fmt.Errorf("azure: looking for missing rights: %w", short(err))
		}
		for _, a := range want {
			if !slices.ContainsFunc(in.Value, func(r permission) bool { return r.gives(a) }) {
				m.Actions, m.Scopes = append(m.Actions, a), append(m.Scopes, scope)
			}
		}
	}
	if len(m.Actions) > 0 {
		return m
	}
	return nil
}
