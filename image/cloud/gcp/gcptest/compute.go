package gcptest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// compute is the part of the Compute Engine API that images need: cloud.google.com/compute/docs/reference/rest/v1.
func (s *Server) compute(r *http.Request, path []string, body []byte) (any, *fault) {
	key := r.Method + " " + strings.Join(path, "/")
	switch {
	case path[0] == "operations" && len(path) == 2 && r.Method == http.MethodGet:
		return s.poll(path[1])
	case path[0] != "images":
		return nil, missing(key)
	case len(path) == 1 && r.Method == http.MethodPost:
		return s.insert(r, body)
	}
	i := s.Images[path[1]]
	if i == nil {
		return nil, missing("image " + path[1])
	}
	action := r.Method
	if len(path) > 2 {
		action = path[2]
	}
	right := map[string]string{
		http.MethodGet: "get", http.MethodDelete: "delete", "getIamPolicy": "getIamPolicy", "setIamPolicy": "setIamPolicy", "deprecate": "deprecate",
	}[action]
	if f := s.denied("compute.images." + right); f != nil {
		return nil, f
	}
	switch action {
	case http.MethodGet:
		return i.Body, nil
	case http.MethodDelete:
		return s.operation("", func() { delete(s.Images, path[1]) }), nil
	case "getIamPolicy":
		if i.Policy == nil {
			i.Policy = map[string]any{"etag": "e0", "version": 1, "bindings": []any{map[string]any{"role": "roles/viewer", "members": []string{"user:somebody@example.org"}}}}
		}
		return i.Policy, nil
	case "setIamPolicy":
		if s.Refused == action {
			return nil, &fault{http.StatusPreconditionFailed, "conditionNotMet", "One or more users named in the policy do not belong to a permitted customer."}
		}
		var in struct{ Policy map[string]any }
		if err := json.Unmarshal(body, &in); err != nil || in.Policy["etag"] != i.Policy["etag"] {
			return nil, &fault{http.StatusConflict, "conflict", "the policy is another one by now"}
		}
		i.Policy = in.Policy
		return in.Policy, nil
	case "deprecate":
		i.Deprecated = map[string]string{}
		if err := json.Unmarshal(body, &i.Deprecated); err != nil {
			return nil, bad("%v", err)
		}
		return s.operation("", nil), nil
	}
	return nil, missing(key)
}

func (s *Server) operation(err string, do func()) any {
	id := fmt.Sprintf("operation-%d", len(s.ops)+1)
	s.ops[id] = &op{do: do, err: err}
	return map[string]any{"name": id, "status": "PENDING"}
}

func (s *Server) poll(id string) (any, *fault) {
	o := s.ops[id]
	if o == nil {
		return nil, missing(id)
	}
	if o.progress += 50; o.progress < 100 {
		return map[string]any{"name": id, "status": "RUNNING", "progress": o.progress}, nil
	}
	out := map[string]any{"name": id, "status": "DONE", "progress": 100}
	if o.err != "" {
		out["httpErrorStatusCode"] = http.StatusForbidden
		out["error"] = map[string]any{"errors": []any{map[string]any{"code": o.err, "message": "Quota 'IMAGES' exceeded.  Limit: 2000.0 globally."}}}
	} else if o.do != nil {
		o.do()
		o.do = nil
	}
	return out, nil
}

func (s *Server) insert(r *http.Request, body []byte) (any, *fault) {
	if f := s.denied("compute.images.create"); f != nil {
		return nil, f
	}
	request := r.URL.Query().Get("requestId")
	if len(request) != 36 {
		s.Wrong = append(s.Wrong, "an image without a request ID")
	}
	if id := s.asked[request]; id != "" {
		return map[string]any{"name": id, "status": "RUNNING"}, nil
	}
	in := map[string]any{}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, bad("%v", err)
	}
	name, _ := in["name"].(string)
	disk, _ := in["rawDisk"].(map[string]any)
	source, _ := disk["source"].(string)
	o := s.objectOf(source)
	switch {
	case o == nil:
		return nil, bad("The referenced source %q cannot be found.", source)
	case s.Images[name] != nil:
		return nil, &fault{http.StatusConflict, "alreadyExists", "The resource '" + name + "' already exists"}
	}
	if state, ok := in["shieldedInstanceInitialState"].(map[string]any); ok {
		if err := certificate(state["pk"]); err != nil {
			return nil, bad("pk: %v", err)
		}
	}
	s.Calls["insert"]++
	in["status"], in["selfLink"] = "PENDING", "https://www.googleapis.com/compute/v1/projects/"+Project+"/global/images/"+name
	var out any
	if s.Quota {
		out = s.operation("QUOTA_EXCEEDED", nil)
	} else {
		s.Images[name] = &Image{Body: in, Data: o.Data}
		out = s.operation("", func() { in["status"] = "READY" })
	}
	s.asked[request] = out.(map[string]any)["name"].(string)
	return out, nil
}

// certificate reads a key file of type X509.
func certificate(v any) error {
	k, _ := v.(map[string]any)
	text, _ := k["content"].(string)
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	if k["fileType"] != "X509" {
		return fmt.Errorf("file type %v", k["fileType"])
	}
	_, err = x509.ParseCertificate(der)
	return err
}
