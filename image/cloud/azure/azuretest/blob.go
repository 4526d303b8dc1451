package azuretest

import (
	"bytes"
	"crypto/md5" // Azure's checksum of what travels
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// page is the unit of page blobs.
const page = 512

// blob is the part of the Blob service that page blobs need: learn.microsoft.com/rest/api/storageservices.
func (s *Server) blob(w http.ResponseWriter, r *http.Request, body []byte) *fault {
	where := strings.TrimPrefix(r.URL.Path, "/"+Account+"/")
	container, _, named := strings.Cut(where, "/")
	query := r.URL.Query()
	action := r.Method + " " + query.Get("comp") + query.Get("restype")
	right := map[string]string{http.MethodGet: "read", http.MethodHead: "read", http.MethodPut: "write", http.MethodDelete: "delete"}[r.Method]
	if s.Denied[blobs+right] && named {
		return &fault{http.StatusForbidden, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission."}
	}
	if !named {
		if action != "PUT container" {
			return bad("InvalidUri", "%s", action)
		}
		s.containers[container] = true
		s.Calls["container"]++
		w.WriteHeader(http.StatusCreated)
		return nil
	}
	b := s.Blobs[where]
	switch {
	case !s.containers[container]:
		return missing("ContainerNotFound", container)
	case action == "PUT ":
		return s.create(w, r, where)
	case b == nil:
		return missing("BlobNotFound", where)
	}
	switch action {
	case "PUT page":
		return s.put(w, r, b, body)
	case "PUT metadata":
		b.Meta = metadata(r)
	case "GET pagelist":
		var x strings.Builder
		for _, at := range slices.Sorted(maps.Keys(b.Pages)) {
			fmt.Fprintf(&x, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", at, at+int64(len(b.Pages[at]))-1)
		}
		w.Header().Set("Content-Type", "application/xml")
		_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>%s</PageList>", &x)
	case "HEAD ":
		for k, v := range b.Meta {
			w.Header().Set("x-ms-meta-"+k, v)
		}
		w.Header().Set("Content-Length", strconv.FormatInt(b.Size, 10))
		w.Header().Set("x-ms-blob-type", "PageBlob")
	case "GET ":
		from, to, f := span(r)
		if f != nil {
			return f
		}
		s.Calls["read"]++
		w.Header().Set("Content-Length", strconv.FormatInt(to-from, 10))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b.Bytes()[from:to])
	case "DELETE ":
		if s.Refused == "delete" {
			return &fault{http.StatusConflict, "BlobImmutableDueToPolicy", "This operation is not permitted as the blob is immutable due to a policy."}
		}
		delete(s.Blobs, where)
		w.WriteHeader(http.StatusAccepted)
	default:
		return bad("InvalidUri", "%s", action)
	}
	return nil
}

// Bytes are what the blob holds.
func (b *Blob) Bytes() []byte {
	out := make([]byte, b.Size)
	for at, p := range b.Pages {
		copy(out[at:], p)
	}
	return out
}

func metadata(r *http.Request) map[string]string {
	out := map[string]string{}
	for k, v := range r.Header {
		if name, ok := strings.CutPrefix(strings.ToLower(k), "x-ms-meta-"); ok {
			out[name] = v[0]
		}
	}
	return out
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, where string) *fault {
	size, err := strconv.ParseInt(r.Header.Get("x-ms-blob-content-length"), 10, 64)
	if err != nil || size%page != 0 || r.Header.Get("x-ms-blob-type") != "PageBlob" {
		s.Wrong = append(s.Wrong, fmt.Sprintf("a blob of type %q and %d bytes", r.Header.Get("x-ms-blob-type"), size))
		return bad("InvalidHeaderValue", "%v", err)
	}
	s.Blobs[where] = &Blob{Size: size, Pages: map[int64][]byte{}, Meta: metadata(r)}
	s.Calls["create"]++
	w.WriteHeader(http.StatusCreated)
	return nil
}

// span is the range of a request, its end behind the last byte.
func span(r *http.Request) (from, to int64, f *fault) {
	text := r.Header.Get("x-ms-range")
	if text == "" {
		text = r.Header.Get("Range")
	}
	if _, err := fmt.Sscanf(text, "bytes=%d-%d", &from, &to); err != nil || to < from {
		return 0, 0, bad("InvalidHeaderValue", "range %q", text)
	}
	return from, to + 1, nil
}

func (s *Server) put(w http.ResponseWriter, r *http.Request, b *Blob, body []byte) *fault {
	from, to, f := span(r)
	if f != nil {
		return f
	}
	s.pages++
	s.Calls["page"]++
	body = bytes.Clone(body)
	if s.Damage > 0 {
		s.Damage--
		body[len(body)-1] ^= 1
	}
	sum := md5.Sum(body) // Azure's checksum of what travels
	switch {
	case r.Header.Get("x-ms-page-write") != "update" || from%page != 0 || to%page != 0 || to-from != int64(len(body)) || len(body) > 4<<20 || to > b.Size:
		s.Wrong = append(s.Wrong, fmt.Sprintf("pages %d-%d, %d bytes, of %d", from, to, len(body), b.Size))
		return bad("InvalidPageRange", "%d-%d", from, to)
	case r.Header.Get("Content-MD5") == "":
		s.Wrong = append(s.Wrong, "pages without a checksum")
	case r.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]):
		return bad("Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the server.")
	}
	if bytes.Count(body, []byte{0}) == len(body) {
		s.Wrong = append(s.Wrong, fmt.Sprintf("pages at %d are all zeros and need not travel", from))
	}
	b.Pages[from] = body
	w.WriteHeader(http.StatusCreated)
	return nil
}
