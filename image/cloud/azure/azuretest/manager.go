package azuretest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

const blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"

// op is something that the resource manager takes its time for.
type op struct {
	polls int
	do    func()
	fault *fault
}

// manager is the part of the resource manager that images need: learn.microsoft.com/rest/api/compute.
func (s *Server) manager(w http.ResponseWriter, r *http.Request, body []byte) *fault {
	if id, ok := strings.CutPrefix(r.URL.Path, "/operations/"); ok {
		return s.poll(w, id)
	}
	if r.URL.Query().Get("api-version") == "" {
		s.Wrong = append(s.Wrong, r.URL.Path+" without api-version")
	}
	group := "/subscriptions/" + Subscription + "/resourceGroups/" + Group
	account := group + "/providers/Microsoft.Storage/storageAccounts/" + Account
	switch r.URL.Path {
	case "/subscriptions":
		answer(w, http.StatusOK, map[string]any{"value": []any{map[string]any{"subscriptionId": Subscription, "displayName": "North"}}})
		return nil
	case account:
		answer(w, http.StatusOK, map[string]any{
			"id": account, "location": Location, "properties": map[string]any{"primaryEndpoints": map[string]any{"blob": s.URL + "/" + Account + "/"}},
		})
		return nil
	case group + "/providers/Microsoft.Authorization/permissions", account + "/providers/Microsoft.Authorization/permissions":
		answer(w, http.StatusOK, map[string]any{"value": s.permissions()})
		return nil
	}
	path, ok := strings.CutPrefix(r.URL.Path, group+"/providers/")
	if !ok {
		return missing("ResourceGroupNotFound", r.URL.Path)
	}
	action := actionOf(r.Method, path)
	if s.Denied[action] {
		return &fault{http.StatusForbidden, "AuthorizationFailed", "The client 'x' does not have authorization to perform action '" + action + "' over scope '" + r.URL.Path + "'."}
	}
	return s.resource(w, r, path, body)
}

// actionOf is what the right to a request is called.
func actionOf(method, path string) string {
	parts := strings.Split(path, "/")
	action := parts[0]
	for i := 1; i < len(parts); i += 2 {
		action += "/" + parts[i]
	}
	if strings.HasSuffix(path, "/share") {
		return "Microsoft.Compute/galleries/share/action"
	}
	return action + "/" + map[string]string{http.MethodGet: "read", http.MethodPut: "write", http.MethodPatch: "write", http.MethodDelete: "delete"}[method]
}

// permissions are two roles, with stars, and what is denied left out.
func (s *Server) permissions() any {
	var not, notData []string
	for _, a := range slices.Sorted(maps.Keys(s.Denied)) {
		if strings.HasPrefix(a, blobs) {
			notData = append(notData, strings.ToLower(a))
		} else {
			not = append(not, strings.ToLower(a))
		}
	}
	return []any{
		map[string]any{"actions": []string{"*/read", "Microsoft.Compute/*", "Microsoft.Storage/*"}, "notActions": append(not, "Microsoft.Authorization/*/Write")},
		map[string]any{"actions": []string{}, "dataActions": []string{blobs + "*"}, "notDataActions": notData},
	}
}

func (s *Server) begin(w http.ResponseWriter, status int, v any, f *fault, do func()) *fault {
	id := fmt.Sprintf("op%d", len(s.ops)+1)
	s.ops[id] = &op{do: do, fault: f}
	w.Header().Set("Azure-AsyncOperation", s.URL+"/operations/"+id+"?api-version=1")
	answer(w, status, v)
	return nil
}

func (s *Server) poll(w http.ResponseWriter, id string) *fault {
	o := s.ops[id]
	if o == nil {
		return missing("NotFound", id)
	}
	out := map[string]any{"status": "InProgress"}
	if o.polls++; o.polls > 1 {
		out["status"] = "Succeeded"
		if o.fault != nil {
			out = map[string]any{"status": "Failed", "error": map[string]any{"code": o.fault.code, "message": o.fault.message}}
		} else if o.do != nil {
			o.do()
			o.do = nil
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (s *Server) resource(w http.ResponseWriter, r *http.Request, path string, body []byte) *fault {
	id := "/subscriptions/" + Subscription + "/resourceGroups/" + Group + "/providers/" + path
	in := map[string]any{}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &in); err != nil {
			return bad("InvalidRequestContent", "%v", err)
		}
	}
	if gallery, ok := strings.CutSuffix(path, "/share"); ok && s.Resources[gallery] != nil {
		if s.Refused == "share" {
			return bad("OperationNotAllowed", "The gallery is shared with as many as it can be.")
		}
		for _, g := range list(in["groups"]) {
			for _, sub := range list(field(g, "ids")) {
				s.Shared = append(s.Shared, fmt.Sprint(field(g, "type"), " ", sub))
			}
		}
		return s.begin(w, http.StatusAccepted, in, nil, nil)
	}
	now := s.Resources[path]
	switch r.Method {
	case http.MethodGet:
		if strings.HasSuffix(path, "/images") || strings.HasSuffix(path, "/versions") {
			value := []any{}
			for _, k := range slices.Sorted(maps.Keys(s.Resources)) {
				if rest, ok := strings.CutPrefix(k, path+"/"); ok && !strings.Contains(rest, "/") {
					value = append(value, s.Resources[k])
				}
			}
			answer(w, http.StatusOK, map[string]any{"value": value})
			return nil
		}
		if now == nil {
			return missing("ResourceNotFound", path)
		}
		answer(w, http.StatusOK, now)
		if properties(now)["provisioningState"] == "Creating" {
			if s.asked[path]++; s.asked[path] > 2 { // nobody has to wait for it
				properties(now)["provisioningState"] = "Succeeded"
			}
		}
		return nil
	case http.MethodPut:
		if f := s.check(path, in); f != nil {
			return f
		}
		s.Calls["put"]++
		if s.Quota {
			return s.begin(w, http.StatusCreated, in, &fault{0, "QuotaExceeded", "The image quota of the subscription is used up."}, nil)
		}
		in["id"], in["name"] = id, path[strings.LastIndex(path, "/")+1:]
		properties(in)["provisioningState"] = "Creating"
		s.Resources[path] = in
		return s.begin(w, http.StatusCreated, in, nil, func() { properties(in)["provisioningState"] = "Succeeded" })
	case http.MethodPatch:
		if now == nil {
			return missing("ResourceNotFound", path)
		}
		if p, ok := field(in["properties"], "publishingProfile").(map[string]any); ok {
			old, _ := properties(now)["publishingProfile"].(map[string]any)
			if to, ok := p["targetRegions"]; ok { // the list is replaced, and the version's own region cannot leave it
				switch {
				case !slices.ContainsFunc(list(to), func(r any) bool { return field(r, "name") == Location }):
					return bad("InvalidParameter", "the version's own region is not among %v", to)
				case s.Refused == "copy":
					return bad("RegionNotAvailable", "The region has no room.")
				}
			}
			maps.Copy(old, p)
		}
		return s.begin(w, http.StatusOK, now, nil, nil)
	case http.MethodDelete:
		if now == nil {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return s.begin(w, http.StatusAccepted, nil, nil, func() { delete(s.Resources, path) })
	}
	return bad("InvalidMethod", "%s", r.Method)
}

func field(v any, names ...string) any {
	for _, n := range names {
		m, _ := v.(map[string]any)
		v = m[n]
	}
	return v
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func properties(v map[string]any) map[string]any {
	p, _ := v["properties"].(map[string]any)
	return p
}

var number = regexp.MustCompile(`^\d+\.\d+\.\d+$`)

// check looks at what is to be made.
func (s *Server) check(path string, in map[string]any) *fault {
	p := properties(in)
	if in["location"] != Location || p == nil {
		return bad("LocationNotAvailable", "location %v", in["location"])
	}
	parts := strings.Split(path, "/")
	switch {
	case len(parts) == 3 && parts[1] == "images":
		disk := field(p, "storageProfile", "osDisk")
		if p["hyperVGeneration"] != "V2" || field(disk, "osState") != "Generalized" {
			return bad("InvalidParameter", "%v", p)
		}
		return s.vhd(fmt.Sprint(field(disk, "blobUri")))
	case len(parts) == 5 && parts[1] == "galleries":
		if s.Resources[strings.Join(parts[:3], "/")] == nil {
			return missing("ParentResourceNotFound", parts[2])
		}
		if p["hyperVGeneration"] != "V2" || field(p, "identifier", "sku") != parts[4] {
			return bad("InvalidParameter", "%v", p)
		}
		return nil
	case len(parts) == 7:
		return s.version(parts, p)
	}
	return bad("InvalidResourceType", "%s", path)
}

func (s *Server) version(parts []string, p map[string]any) *fault {
	source := field(p, "storageProfile", "osDiskImage", "source")
	switch {
	case s.Resources[strings.Join(parts[:5], "/")] == nil:
		return missing("ParentResourceNotFound", parts[4])
	case !number.MatchString(parts[6]):
		return bad("InvalidParameter", "version %s", parts[6])
	case !strings.HasSuffix(fmt.Sprint(field(source, "storageAccountId")), "/"+Account):
		return bad("InvalidParameter", "source %v", source)
	case field(list(field(p, "publishingProfile", "targetRegions"))[0], "name") != Location:
		return bad("InvalidParameter", "the first region is not the version's")
	}
	if uefi := field(p, "securityProfile", "uefiSettings"); uefi != nil {
		if t := list(field(uefi, "signatureTemplateNames")); len(t) != 1 || t[0] != "NoSignatureTemplate" {
			return bad("InvalidParameter", "templates %v", t)
		}
		keys := []any{field(uefi, "additionalSignatures", "pk")}
		keys = append(append(keys, list(field(uefi, "additionalSignatures", "kek"))...), list(field(uefi, "additionalSignatures", "db"))...)
		if len(keys) != 3 {
			return bad("InvalidParameter", "%d keys", len(keys))
		}
		for _, k := range keys {
			der, err := base64.StdEncoding.DecodeString(fmt.Sprint(list(field(k, "value"))[0]))
			if err == nil {
				_, err = x509.ParseCertificate(der)
			}
			if err != nil || field(k, "type") != "x509" {
				return bad("InvalidParameter", "key: %v", err)
			}
		}
	}
	return s.vhd(fmt.Sprint(field(source, "uri")))
}

// vhd checks that a blob is a fixed VHD of whole MiB.
func (s *Server) vhd(uri string) *fault {
	b := s.Blobs[strings.TrimPrefix(uri, s.URL+"/"+Account+"/")]
	if b == nil {
		return bad("InvalidParameter", "there is no blob %s", uri)
	}
	all := b.Bytes()
	if b.Size%(1<<20) != page || !bytes.Equal(all[b.Size-page:][:8], []byte("conectix")) {
		return bad("InvalidVhd", "The specified cookie value in VHD footer indicates that disk '%s' is not supported.", uri)
	}
	return nil
}
