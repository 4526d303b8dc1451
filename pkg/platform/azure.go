package platform

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
)

// azure asks the instance metadata service. learn.microsoft.com/azure/virtual-machines/instance-metadata-service
func azure(ctx context.Context, _ *Place) (*Instance, error) {
	const path = "/metadata/instance"
	data, _, err := request(ctx, http.MethodGet, linkLocal+path+"?api-version=2021-02-01", "", "Metadata", "true")
	if err != nil {
		return nil, err
	}
	var d struct {
		Compute struct {
			VMID       string
			Name       string
			Location   string
			Zone       string
			VMSize     string
			ResourceID string
			UserData   string
			OSProfile  struct{ ComputerName string }
			PublicKeys []struct{ KeyData string }
		}
	}
	if err := decode(path, data, &d); err != nil {
		return nil, err
	}
	c := d.Compute
	if c.VMID == "" || c.ResourceID == "" {
		return nil, fmt.Errorf("%s: lacks vmId or resourceId", path)
	}
	user, err := base64.StdEncoding.DecodeString(c.UserData)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, refused{"user data is not base64"})
	}
	i := &Instance{
		ID: c.VMID, Hostname: hostname(c.OSProfile.ComputerName), Type: c.VMSize, Region: c.Location,
		ProviderID: "azure://" + c.ResourceID, UserData: user,
	}
	if i.Hostname == "" {
		i.Hostname = hostname(c.Name)
	}
	for _, k := range c.PublicKeys {
		i.SSHKeys = append(i.SSHKeys, keyLines(k.KeyData)...)
	}
	if c.Zone != "" {
		i.Zone = c.Location + "-" + c.Zone
	}
	return i, nil
}

// fabric is the wire server: the same address on every machine of Azure.
const (
	fabric        = "http://168.63.129.16"
	fabricVersion = "2012-11-30"
)

// Report tells the platform that the machine is there, where one waits for that: Azure ends a machine's provisioning with an
// error if nobody does.
func Report(ctx context.Context, i *Instance) error {
	if i.Platform != "azure" {
		return nil
	}
	data, _, err := request(ctx, http.MethodGet, fabric+"/machine?comp=goalstate", "", "x-ms-version", fabricVersion, "x-ms-agent-name", "skerry")
	if err != nil {
		return err
	}
	var goal struct {
		Incarnation string
		Container   struct {
			ContainerID      string `xml:"ContainerId"`
			RoleInstanceList struct {
				RoleInstance []struct {
					InstanceID string `xml:"InstanceId"`
				}
			}
		}
	}
	if err := xml.Unmarshal(data, &goal); err != nil {
		return fmt.Errorf("%s: goal state: %w", fabric, err)
	}
	roles := goal.Container.RoleInstanceList.RoleInstance
	if goal.Incarnation == "" || goal.Container.ContainerID == "" || len(roles) == 0 {
		return fmt.Errorf("%s: goal state lacks incarnation, container or instance", fabric)
	}
	var body strings.Builder
	fmt.Fprintf(&body, `<?xml version="1.0" encoding="utf-8"?><Health><GoalStateIncarnation>%s</GoalStateIncarnation><Container><ContainerId>%s</ContainerId>`+
		`<RoleInstanceList><Role><InstanceId>%s</InstanceId><Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>`,
		escaped(goal.Incarnation), escaped(goal.Container.ContainerID), escaped(roles[0].InstanceID))
	_, _, err = request(ctx, http.MethodPost, fabric+"/machine?comp=health", body.String(),
		"x-ms-version", fabricVersion, "x-ms-agent-name", "skerry", "Content-Type", "text/xml; charset=utf-8")
	return err
}

func escaped(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
