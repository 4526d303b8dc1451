package gcptest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// storage is the JSON API of Cloud Storage: cloud.google.com/storage/docs/json_api/v1.
func (s *Server) storage(r *http.Request, path []string) (any, *fault) {
	if path[0] != Bucket {
		return nil, missing("bucket " + path[0])
	}
	switch {
	case len(path) == 3 && path[1] == "iam" && path[2] == "testPermissions" && r.Method == http.MethodGet:
		return map[string]any{"permissions": slices.DeleteFunc(r.URL.Query()["permissions"], func(p string) bool { return s.Denied[p] })}, nil
	case len(path) != 3 || path[1] != "o":
		return nil, missing(r.URL.Path)
	}
	o := s.Objects[path[2]]
	if o == nil {
		return nil, missing("object " + path[2])
	}
	switch r.Method {
	case http.MethodGet:
		return s.describe(o), s.denied("storage.objects.get")
	case http.MethodDelete:
		if f := s.denied("storage.objects.delete"); f != nil {
			return nil, f
		}
		if s.Refused == "delete" {
			return nil, &fault{http.StatusForbidden, "retentionPolicyNotMet", "Object is subject to the bucket's retention policy."}
		}
		if r.URL.Query().Get("ifGenerationMatch") != "1" {
			return nil, &fault{http.StatusPreconditionFailed, "conditionNotMet", "the object is another one"}
		}
		delete(s.Objects, path[2])
		return nil, nil
	}
	return nil, bad("%s", r.Method)
}

func (s *Server) describe(o *Object) any {
	return map[string]string{"crc32c": o.CRC32C, "size": strconv.Itoa(len(o.Data)), "generation": "1"}
}

// begin begins a resumable upload: cloud.google.com/storage/docs/performing-resumable-uploads.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, body []byte) *fault {
	if f := s.denied("storage.objects.create"); f != nil {
		return f
	}
	var in struct {
		Name, CRC32C string
		Metadata     map[string]string
	}
	size, err := strconv.ParseInt(r.Header.Get("X-Upload-Content-Length"), 10, 64)
	if jerr := json.Unmarshal(body, &in); jerr != nil || err != nil || in.Name == "" || in.CRC32C == "" || r.URL.Query().Get("uploadType") != "resumable" {
		s.Wrong = append(s.Wrong, fmt.Sprintf("begin: %s %s", r.URL.RawQuery, body))
		return bad("an upload that says too little")
	}
	if s.Objects[in.Name] != nil && r.URL.Query().Get("ifGenerationMatch") == "0" {
		return &fault{http.StatusPreconditionFailed, "conditionNotMet", "there is one already"}
	}
	id := fmt.Sprintf("secret%d", len(s.sessions)+1)
	s.sessions[id] = &session{name: in.Name, crc: in.CRC32C, size: size, meta: in.Metadata}
	s.Calls["begin"]++
	w.Header().Set("Location", s.URL+"/session/"+id)
	return nil
}

func (s *Server) chunk(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	u := s.sessions[id]
	if u == nil || u.ended {
		refuse(w, missing("upload"))
		return
	}
	if f := s.take(u, r.Header.Get("Content-Range"), body); f != nil {
		refuse(w, f)
		return
	}
	if o := s.Objects[u.name]; o != nil && int64(len(u.data)) == u.size {
		_ = json.NewEncoder(w).Encode(s.describe(o))
		return
	}
	if len(u.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(u.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// take adds a chunk to an upload. What was taken before is passed over; the end is held against the checksum.
func (s *Server) take(u *session, rng string, body []byte) *fault {
	if rng == fmt.Sprintf("bytes */%d", u.size) && len(body) == 0 {
		return nil
	}
	var from, to, all int64
	if _, err := fmt.Sscanf(rng, "bytes %d-%d/%d", &from, &to, &all); err != nil || all != u.size || to-from+1 != int64(len(body)) || from > int64(len(u.data)) || to >= all {
		s.Wrong = append(s.Wrong, fmt.Sprintf("range %q of %d bytes, %d are there", rng, len(body), len(u.data)))
		return bad("range %q", rng)
	}
	if to+1 < all && len(body)%(256<<10) != 0 {
		s.Wrong = append(s.Wrong, fmt.Sprintf("a chunk of %d bytes", len(body)))
		return bad("not whole 256 KiB")
	}
	s.chunks++
	s.Calls["chunk"]++
	if s.Damage > 0 && from == 0 {
		s.Damage--
		body[77] ^= 1
	}
	if to < int64(len(u.data)) {
		return nil
	}
	body = body[int64(len(u.data))-from:]
	if s.Faults && s.chunks%3 == 0 && len(body) > 512<<10 {
		body = body[:len(body)/2&^(256<<10-1)]
	}
	u.data = append(u.data, body...)
	if int64(len(u.data)) < u.size {
		return nil
	}
	if sum := CRC32C(u.data); sum != u.crc {
		u.ended = true
		return bad("Provided CRC32C %q doesn't match calculated CRC32C %q.", u.crc, sum)
	}
	s.Objects[u.name] = &Object{Data: u.data, CRC32C: u.crc, Metadata: u.meta}
	return nil
}

// CRC32C is a checksum as Cloud Storage writes it.
func CRC32C(b []byte) string {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// objectOf is the object that an image's source names.
func (s *Server) objectOf(source string) *Object {
	name, ok := strings.CutPrefix(source, "https://storage.googleapis.com/"+Bucket+"/")
	if !ok {
		return nil
	}
	return s.Objects[name]
}
