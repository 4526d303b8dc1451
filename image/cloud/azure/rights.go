package azure

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// What actions begin with. Those on blobs are data actions.
const (
	blobs     = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
	galleries = "Microsoft.Compute/galleries/"
)

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
	fmt.Fprintf(&b, "azure: the credentials may not %s; these commands give them that and no more:", strings.Join(m.Actions, ", "))
	var roles []string
	for _, scope := range slices.Compact(slices.Clone(m.Scopes)) {
		// The fields are those of az role definition create.
		def := struct {
			Name                 string
			IsCustom             bool
			Description          string
			Actions, DataActions []string
			AssignableScopes     []string
		}{IsCustom: true, Description: "What skerry publish needs", Actions: []string{}, DataActions: []string{}, AssignableScopes: []string{scope}}
		sum := crc32.NewIEEE()
		_, _ = io.WriteString(sum, scope)
		for i, a := range m.Actions {
			switch {
			case m.Scopes[i] != scope:
				continue
			case strings.HasPrefix(a, blobs):
				def.DataActions = append(def.DataActions, a)
			default:
				def.Actions = append(def.Actions, a)
			}
			_, _ = io.WriteString(sum, "\n"+a)
			if r := role(a); !slices.Contains(roles, r) {
				roles = append(roles, r)
			}
		}
		def.Name = fmt.Sprintf("skerry publish %08x", sum.Sum32()) // one name for each tenant, so other rights are another
		text, _ := json.Marshal(def)                               // strings only: never fails
		fmt.Fprintf(&b, "\naz role definition create --role-definition '%s'\naz role assignment create --role %q --scope %s --assignee WHO", text, def.Name, scope)
	}
	fmt.Fprintf(&b, "\n(of the roles that Azure has made, %s hold them)", strings.Join(roles, ", "))
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

// preflight asks for every right that publishing will need, before anything is made.
func (p *Publisher) preflight(ctx context.Context, o *Options, store *storageAccount) error {
	group := []string{"Microsoft.Compute/images/read", "Microsoft.Compute/images/write"}
	data := []string{"Microsoft.Storage/storageAccounts/blobServices/containers/read", "Microsoft.Storage/storageAccounts/blobServices/containers/write", blobs + "read", blobs + "write"}
	if o.Gallery != "" {
		group = []string{galleries + "read", galleries + "images/read", galleries + "images/write", galleries + "images/versions/read", galleries + "images/versions/write"}
		data = append(data, "Microsoft.Storage/storageAccounts/listKeys/action", "Microsoft.Storage/storageAccounts/write") // a version is made of a VHD with them
		if len(o.Share) > 0 {
			group = append(group, galleries+"share/action")
		}
	}
	return p.may(ctx, scoped{p.id(o.Group), group}, scoped{store.ID, data})
}

// scoped are actions on a resource group or an account.
type scoped struct {
	scope   string
	actions []string
}

// may asks whether the credentials have rights.
func (p *Publisher) may(ctx context.Context, want ...scoped) error {
	var m MissingRights
	for _, w := range want {
		var in struct {
			Value []permission `json:"value"`
		}
		if err := p.get(ctx, w.scope+"/providers/Microsoft.Authorization/permissions", "2022-04-01", &in); err != nil {
			if status(err) == http.StatusForbidden {
				p.log("rights on %s are not looked at beforehand: %v", w.scope, short(err))
				continue
			}
			return fmt.Errorf("azure: looking for missing rights: %w", short(err))
		}
		for _, a := range w.actions {
			if !slices.ContainsFunc(in.Value, func(r permission) bool { return r.gives(a) }) {
				m.Actions, m.Scopes = append(m.Actions, a), append(m.Scopes, w.scope)
			}
		}
	}
	if len(m.Actions) > 0 {
		return m
	}
	return nil
}
