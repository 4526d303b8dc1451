// Package awstest is as much of Amazon's EC2, EBS direct and STS as it takes to publish an image: a server that checks what the
// real one checks (every signature, every checksum, the order of things, rights) and fails as the real one does, when told to.
package awstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the server knows of its only user.
const (
	KeyID   = "AKIDEXAMPLE"
	Secret  = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	Account = "123456789012"
	Block   = 512 << 10
)

// Snapshot is a snapshot as the server has it.
type Snapshot struct {
	State  string // pending, completed
	GiB    int64
	Blocks map[int][]byte
	Tags   map[string]string
	Shared []string // accounts, or all
	polls  int
}

// Image is an image as the server has it.
type Image struct {
	State      string // pending, available
	Form       url.Values
	Name       string
	Snapshot   string
	Tags       map[string]string
	Shared     []string
	Deprecated string
	polls      int
}

// Server is the test's cloud. Its fields are read and set with Lock held, or before and after.
type Server struct {
	sync.Mutex
	URL        string
	Snapshots  map[string]map[string]*Snapshot // by region and id
	Images     map[string]map[string]*Image
	Denied     map[string]bool // actions the user has no right to, such as ec2:CopyImage
	Refused    map[string]bool // actions that are refused when they are done, though a dry run says that they may be
	Lose       map[string]int  // how many answers to an action are lost
	Hold       bool            // snapshots take for ever to be completed
	OnComplete func()          // a snapshot is to be completed, and the answer is on its way
	Faults     bool            // drop every 7th request unheard, lose the answer of every 11th, throttle every 5th
	Stop       int             // refuse all blocks after so many; 0 for never
	Private    bool            // the account blocks public images
	Calls      map[string]int  // by action
	Unsigned   []string        // requests whose signature was wrong

	t     testing.TB
	n     int
	ids   int
	puts  int
	begun map[string]string // client token -> snapshot
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{
		Snapshots: map[string]map[string]*Snapshot{}, Images: map[string]map[string]*Image{}, Denied: map[string]bool{}, Refused: map[string]bool{}, Lose: map[string]int{}, Calls: map[string]int{}, begun: map[string]string{}, t: t,
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.URL = h.URL
	return s
}

// Env is what makes the SDK speak to this server.
func (s *Server) Env() map[string]string {
	return map[string]string{
		"AWS_ENDPOINT_URL": s.URL, "AWS_ACCESS_KEY_ID": KeyID, "AWS_SECRET_ACCESS_KEY": Secret, "AWS_REGION": "eu-central-1",
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true", "AWS_PROFILE": "",
	}
}

// Disk gives the bytes of a snapshot's disk, up to size.
func (s *Server) Disk(region, id string, size int64) []byte {
	s.Lock()
	defer s.Unlock()
	out := make([]byte, (size+Block-1)/Block*Block)
	for i, b := range s.Snapshots[region][id].Blocks {
		copy(out[i*Block:], b)
	}
	return out[:size]
}

// Puts is how many blocks were sent, without those that only ask for the right.
func (s *Server) Puts() int {
	s.Lock()
	defer s.Unlock()
	return s.puts
}

// Blocks is how many blocks the snapshots have.
func (s *Server) Blocks() (n int) {
	s.Lock()
	defer s.Unlock()
	for _, in := range s.Snapshots {
		for _, snap := range in {
			n += len(snap.Blocks)
		}
	}
	return n
}

type fault struct {
	status  int
	code    string
	message string
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	region, service, err := verify(r, body)
	s.Lock()
	defer s.Unlock()
	if err != nil {
		s.Unsigned = append(s.Unsigned, fmt.Sprintf("%s %s: %v", r.Method, r.URL, err))
		s.answer(w, service, nil, &fault{http.StatusForbidden, "SignatureDoesNotMatch", err.Error()})
		return
	}
	s.n++
	if s.Faults && service != "sts" {
		switch {
		case s.n%7 == 0:
			hangUp(w)
			return
		case s.n%5 == 0:
			f := &fault{http.StatusServiceUnavailable, "RequestLimitExceeded", "Request limit exceeded."}
			if service == "ebs" {
				f = &fault{http.StatusBadRequest, "RequestThrottledException", "slow down"}
			}
			s.answer(w, service, nil, f)
			return
		}
	}
	lose := s.Faults && s.n%11 == 0
	if action := action(r, body); s.Lose[action] > 0 {
		s.Lose[action]--
		lose = true
	}
	out := w
	if lose {
		out = httptest.NewRecorder()
		defer hangUp(w)
	}
	switch service {
	case "sts":
		_, _ = fmt.Fprintf(out, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::%s:user/x</Arn><UserId>AIDA</UserId><Account>%s</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, Account, Account)
	case "ebs":
		f := s.ebs(out, r, region, body)
		s.answer(out, service, nil, f)
	case "ec2":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			s.t.Errorf("ec2: %v", err)
		}
		text, f := s.ec2(region, form)
		s.answer(out, service, []byte(text), f)
	default:
		s.t.Errorf("a request to service %q", service)
	}
}

// action is what a request wants, if that is one of those whose answers can be lost: not those that only ask for the right.
func action(r *http.Request, body []byte) string {
	switch {
	case strings.Contains(r.URL.Path, "/snap-00000000000000000"), bytes.Contains(body, []byte("ParentSnapshotId")):
		return ""
	case strings.HasPrefix(r.URL.Path, "/snapshots/completion/"):
		return "ebs:CompleteSnapshot"
	case r.URL.Path == "/snapshots":
		return "ebs:StartSnapshot"
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("Action") == "" || form.Get("DryRun") == "true" {
		return ""
	}
	return "ec2:" + form.Get("Action")
}

// hangUp ends the connection in the middle.
func hangUp(w http.ResponseWriter) {
	if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = c.Close()
	}
}

func (s *Server) answer(w http.ResponseWriter, service string, text []byte, f *fault) {
	switch {
	case f == nil:
		_, _ = w.Write(text)
	case service == "ebs":
		w.Header().Set("X-Amzn-ErrorType", f.code)
		w.WriteHeader(f.status)
		_, _ = fmt.Fprintf(w, `{"Message":%q}`, f.message)
	default:
		w.WriteHeader(f.status)
		_, _ = fmt.Fprintf(w, `<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>r</RequestID></Response>`, f.code, f.message)
	}
}

func (s *Server) id(prefix string) string {
	s.ids++
	return fmt.Sprintf("%s-%017x", prefix, s.ids)
}

func invalid(format string, a ...any) *fault {
	return &fault{http.StatusBadRequest, "ValidationException", fmt.Sprintf(format, a...)}
}

// ebs is the EBS direct API: docs.aws.amazon.com/ebs/latest/APIReference.
func (s *Server) ebs(w http.ResponseWriter, r *http.Request, region string, body []byte) *fault {
	action, id, index := "ebs:StartSnapshot", "", 0
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.Method == http.MethodPost && len(parts) == 1:
	case r.Method == http.MethodPut && len(parts) == 4 && parts[2] == "blocks":
		action, id = "ebs:PutSnapshotBlock", parts[1]
		index, _ = strconv.Atoi(parts[3])
	case r.Method == http.MethodPost && len(parts) == 3 && parts[1] == "completion":
		action, id = "ebs:CompleteSnapshot", parts[2]
	default:
		return invalid("no such call: %s %s", r.Method, r.URL)
	}
	if s.Denied[action] {
		return &fault{http.StatusForbidden, "AccessDeniedException", "not authorized to perform: " + action}
	}
	if action == "ebs:StartSnapshot" {
		return s.start(w, region, body)
	}
	snap := s.Snapshots[region][id]
	if snap == nil {
		return &fault{http.StatusNotFound, "ResourceNotFoundException", "The snapshot " + id + " does not exist"}
	}
	s.Calls[action]++
	if snap.State != "pending" || snap.polls > 0 {
		return &fault{http.StatusBadRequest, "ConflictException", id + " is not pending"}
	}
	if action == "ebs:PutSnapshotBlock" {
		return s.put(w, r, snap, index, body)
	}
	return s.complete(w, r, snap)
}

func (s *Server) start(w http.ResponseWriter, region string, body []byte) *fault {
	var in struct {
		VolumeSize                    int64
		ClientToken, ParentSnapshotID string
		Tags                          []struct{ Key, Value string }
	}
	if err := json.Unmarshal(body, &in); err != nil || in.VolumeSize < 1 {
		return invalid("%v", err)
	}
	if in.ParentSnapshotID != "" {
		return &fault{http.StatusNotFound, "ResourceNotFoundException", "no such parent"}
	}
	s.Calls["ebs:StartSnapshot"]++
	id, again := s.begun[in.ClientToken]
	if !again {
		id = s.id("snap")
		s.begun[in.ClientToken] = id
		if s.Snapshots[region] == nil {
			s.Snapshots[region] = map[string]*Snapshot{}
		}
		tags := map[string]string{}
		for _, t := range in.Tags {
			tags[t.Key] = t.Value
		}
		s.Snapshots[region][id] = &Snapshot{State: "pending", GiB: in.VolumeSize, Blocks: map[int][]byte{}, Tags: tags}
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"SnapshotId":%q,"BlockSize":%d,"VolumeSize":%d,"Status":"pending","OwnerId":%q}`, id, Block, in.VolumeSize, Account)
	return nil
}

func (s *Server) put(w http.ResponseWriter, r *http.Request, snap *Snapshot, index int, body []byte) *fault {
	if s.puts++; s.Stop > 0 && s.puts > s.Stop {
		return &fault{http.StatusForbidden, "AccessDeniedException", "credentials have expired"}
	}
	sum := sha256.Sum256(body)
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	switch {
	case r.Header.Get("x-amz-Data-Length") != strconv.Itoa(Block) || len(body) != Block:
		return invalid("a block of %d bytes", len(body))
	case r.Header.Get("x-amz-Checksum-Algorithm") != "SHA256" || r.Header.Get("x-amz-Checksum") != checksum:
		return invalid("the checksum does not match")
	case int64(index) >= snap.GiB<<30/Block:
		return invalid("block %d is outside the volume", index)
	case bytes.Equal(body, make([]byte, Block)):
		s.t.Errorf("block %d is all zeros and need not travel", index)
	}
	snap.Blocks[index] = body
	w.Header().Set("x-amz-Checksum", checksum)
	w.Header().Set("x-amz-Checksum-Algorithm", "SHA256")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, "{}")
	return nil
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request, snap *Snapshot) *fault {
	total := sha256.New()
	for _, i := range slices.Sorted(maps.Keys(snap.Blocks)) {
		sum := sha256.Sum256(snap.Blocks[i])
		total.Write(sum[:])
	}
	switch {
	case r.Header.Get("x-amz-ChangedBlocksCount") != strconv.Itoa(len(snap.Blocks)):
		return invalid("there are %d blocks, not %s", len(snap.Blocks), r.Header.Get("x-amz-ChangedBlocksCount"))
	case r.Header.Get("x-amz-Checksum") != base64.StdEncoding.EncodeToString(total.Sum(nil)) || r.Header.Get("x-amz-Checksum-Aggregation-Method") != "LINEAR":
		return invalid("the checksum of all blocks does not match")
	}
	snap.polls = 1 // completed when asked for the second time
	if s.OnComplete != nil {
		s.OnComplete()
	}
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"Status":"pending"}`)
	return nil
}

// verify checks an AWS Signature Version 4 and gives what it was made for.
// docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
func verify(r *http.Request, body []byte) (region, service string, err error) {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "", "", fmt.Errorf("no signature")
	}
	f := map[string]string{}
	for p := range strings.SplitSeq(auth, ", ") {
		k, v, _ := strings.Cut(p, "=")
		f[k] = v
	}
	scope := strings.Split(f["Credential"], "/")
	if len(scope) != 5 || scope[0] != KeyID || scope[4] != "aws4_request" {
		return "", "", fmt.Errorf("credential %q", f["Credential"])
	}
	region, service = scope[2], scope[3]
	stamp := r.Header.Get("X-Amz-Date")
	if when, err := time.Parse("20060102T150405Z", stamp); err != nil || time.Since(when).Abs() > 15*time.Minute || !strings.HasPrefix(stamp, scope[1]) {
		return region, service, fmt.Errorf("date %q", stamp)
	}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	if said := r.Header.Get("X-Amz-Content-Sha256"); said == "UNSIGNED-PAYLOAD" && strings.Contains(r.URL.Path, "/blocks/") {
		payload = said // a block has a checksum of its own
	} else if said != "" && said != payload {
		return region, service, fmt.Errorf("the body is not what was signed")
	}
	signed := strings.Split(f["SignedHeaders"], ";")
	if !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-date") {
		return region, service, fmt.Errorf("signed are only %v", signed)
	}
	var headers strings.Builder
	for _, h := range signed {
		v := strings.Join(r.Header.Values(h), ",")
		switch h {
		case "host":
			v = r.Host
		case "content-length":
			v = strconv.FormatInt(r.ContentLength, 10)
		}
		headers.WriteString(h + ":" + strings.Join(strings.Fields(v), " ") + "\n")
	}
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20"), headers.String(), f["SignedHeaders"], payload}, "\n")
	digest := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{"AWS4-HMAC-SHA256", stamp, strings.Join(scope[1:], "/"), hex.EncodeToString(digest[:])}, "\n")
	key := []byte("AWS4" + Secret)
	for _, part := range append(slices.Clone(scope[1:]), text) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(f["Signature"])) {
		return region, service, fmt.Errorf("the signature does not match")
	}
	return region, service, nil
}
