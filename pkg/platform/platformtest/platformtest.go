// Package platformtest is the services that clouds tell their machines about themselves by: each checks what the real one checks,
// and tells of one machine.
package platformtest

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Addresses that the services answer at.
const (
	LinkLocal     = "169.254.169.254"
	LinkLocalIPv6 = "fd00:ec2::254" // Amazon's, in subnets without IPv4
	FabricAddress = "168.63.129.16"
)

// Cloud is what a machine is told. Its methods are the services, as handlers.
type Cloud struct {
	UserData string
	Busy     int // so many requests are turned away at first

	mu       sync.Mutex
	asked    []string
	wrong    []string
	sessions map[string]bool
	reported []Health
}

// Health is what a machine of Azure reports.
type Health struct {
	Incarnation string `xml:"GoalStateIncarnation"`
	Container   string `xml:"Container>ContainerId"`
	Instance    string `xml:"Container>RoleInstanceList>Role>InstanceId"`
	State       string `xml:"Container>RoleInstanceList>Role>Health>State"`
}

// Asked are the requests so far, with those that were turned away.
func (c *Cloud) Asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

// Wrong are the requests that were not as they must be.
func (c *Cloud) Wrong() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.wrong)
}

// Reported is what machines reported to Azure's fabric.
func (c *Cloud) Reported() []Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.reported)
}

// begin notes a request, and says whether it is to be answered. All services turn away who comes through a proxy.
func (c *Cloud) begin(w http.ResponseWriter, r *http.Request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, r.Method+" "+r.URL.String())
	if r.Header.Get("X-Forwarded-For") != "" {
		c.wrong = append(c.wrong, r.URL.String()+" through a proxy")
	}
	if c.Busy > 0 {
		c.Busy--
		http.Error(w, "throttled", http.StatusServiceUnavailable)
		return false
	}
	return true
}

func (c *Cloud) refuse(w http.ResponseWriter, r *http.Request, status int, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, r.Method+" "+r.URL.String()+": "+why)
	http.Error(w, why, status)
}

// AWS is version 2 of EC2's service, which tells nothing without a session.
func (c *Cloud) AWS(w http.ResponseWriter, r *http.Request) {
	if !c.begin(w, r) {
		return
	}
	if r.URL.Path == "/latest/api/token" {
		if r.Method != http.MethodPut || r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
			c.refuse(w, r, http.StatusBadRequest, "a session without its length")
			return
		}
		c.mu.Lock()
		token := fmt.Sprintf("AQAAAL-session-%d==", len(c.sessions))
		if c.sessions == nil {
			c.sessions = map[string]bool{}
		}
		c.sessions[token] = true
		c.mu.Unlock()
		_, _ = io.WriteString(w, token)
		return
	}
	c.mu.Lock()
	known := c.sessions[r.Header.Get("X-aws-ec2-metadata-token")]
	c.mu.Unlock()
	if r.Method != http.MethodGet || !known {
		c.refuse(w, r, http.StatusUnauthorized, "without a session")
		return
	}
	switch r.URL.Path {
	case "/latest/dynamic/instance-identity/document":
		_, _ = io.WriteString(w, `{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-central-1b","imageId":"ami-1","instanceId":"i-0a1b2c3d4e5f60718","instanceType":"m7i.large","privateIp":"10.0.0.7","region":"eu-central-1","version":"2017-09-30"}`)
	case "/latest/user-data":
		if c.UserData == "" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, c.UserData)
	case "/latest/meta-data/public-keys/":
		_, _ = io.WriteString(w, "0=desk\n2=laptop")
	case "/latest/meta-data/public-keys/0/openssh-key", "/latest/meta-data/public-keys/2/openssh-key":
		_, _ = io.WriteString(w, "ssh-ed25519 AAAA"+r.URL.Path[30:31]+" desk\n")
	default:
		http.NotFound(w, r)
	}
}

// GCP is Google's metadata server.
func (c *Cloud) GCP(w http.ResponseWriter, r *http.Request) {
	if !c.begin(w, r) {
		return
	}
	if r.Header.Get("Metadata-Flavor") != "Google" {
		c.refuse(w, r, http.StatusForbidden, "Missing Metadata-Flavor:Google header.")
		return
	}
	w.Header().Set("Metadata-Flavor", "Google")
	switch r.URL.String() {
	case "/computeMetadata/v1/instance/?recursive=true":
		data, _ := json.Marshal(c.UserData) // a string: never fails
		_, _ = fmt.Fprintf(w, `{"id":4172309120498712345,"name":"north-mig-x7k2","hostname":"north-mig-x7k2.c.my-project.internal","zone":"projects/123/zones/europe-west3-c",
			"machineType":"projects/123/machineTypes/e2-medium","attributes":{"user-data":%s,"ssh-keys":"x\nadmin:ssh-ed25519 AAAA admin@desk\n"},"tags":[]}`, data)
	case "/computeMetadata/v1/project/attributes/ssh-keys":
		_, _ = io.WriteString(w, "a:ssh-rsa AAAB google-ssh {\"userName\":\"a\",\"expireOn\":\"2026-01-01T00:00:00+0000\"}\nb:ssh-ed25519 AAAC b\n")
	case "/computeMetadata/v1/project/project-id":
		_, _ = io.WriteString(w, "my-project")
	default:
		http.NotFound(w, r)
	}
}

// Azure is the service that tells a machine of Azure.
func (c *Cloud) Azure(w http.ResponseWriter, r *http.Request) {
	if !c.begin(w, r) {
		return
	}
	if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("api-version") == "" || r.URL.Path != "/metadata/instance" {
		c.refuse(w, r, http.StatusBadRequest, `{"error":"Bad request"}`)
		return
	}
	_, _ = fmt.Fprintf(w, `{"compute":{"vmId":"02aab8a4-74ef-476e-8182-f6d2ba4166a6","name":"vmss_3","location":"westeurope","zone":"2","vmSize":"Standard_D2s_v5",
		"resourceId":"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/vmss/virtualMachines/3",
		"userData":%q,"osProfile":{"computerName":"VMSS000003"},
		"publicKeys":[{"keyData":"ssh-rsa AAAA admin@desk\r\n","path":"/home/admin/.ssh/authorized_keys"}]},"network":{}}`, base64.StdEncoding.EncodeToString([]byte(c.UserData)))
}

// Fabric is the service that a machine of Azure tells that it is there.
func (c *Cloud) Fabric(w http.ResponseWriter, r *http.Request) {
	if !c.begin(w, r) {
		return
	}
	if r.Header.Get("x-ms-version") != "2012-11-30" {
		c.refuse(w, r, http.StatusBadRequest, "version")
		return
	}
	switch r.Method + " " + r.URL.String() {
	case "GET /machine?comp=goalstate":
		_, _ = io.WriteString(w, `<?xml version="1.0"?><GoalState><Version>2012-11-30</Version><Incarnation>7</Incarnation><Machine><ExpectedState>Started</ExpectedState></Machine>
			<Container><ContainerId>c-1</ContainerId><RoleInstanceList><RoleInstance><InstanceId>a&amp;b._vmss_3</InstanceId><State>Started</State></RoleInstance></RoleInstanceList></Container></GoalState>`)
	case "POST /machine?comp=health":
		var h Health
		if err := xml.NewDecoder(r.Body).Decode(&h); err != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/xml") {
			c.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("health: %v", err))
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reported = append(c.reported, h)
	default:
		http.NotFound(w, r)
	}
}

// Nova is what OpenStack says of a machine, by its service and on a volume config-2.
const Nova = `{"uuid":"83679162-1378-4288-a2d4-70e13ec132aa","name":"North 1","hostname":"north-1.novalocal","availability_zone":"nova","keys":[],"public_keys":{"desk":"ssh-ed25519 AAAA desk\n"},"project_id":"p"}`

// OpenStack is the metadata service of OpenStack.
func (c *Cloud) OpenStack(w http.ResponseWriter, r *http.Request) {
	if !c.begin(w, r) {
		return
	}
	switch r.URL.Path {
	case "/openstack/latest/meta_data.json":
		_, _ = io.WriteString(w, Nova)
	case "/openstack/latest/user_data":
		_, _ = io.WriteString(w, c.UserData)
	case "/latest/meta-data/instance-type":
		_, _ = io.WriteString(w, "m1.medium")
	default:
		http.NotFound(w, r)
	}
}
