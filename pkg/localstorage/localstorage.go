// Package localstorage makes volumes out of folders on the nodes: the StorageClass local-path, with the provisioner's name that
// K3s's has, so that manifests for it work as they are.
//
// It needs no pods and no image. The server's half decides, the node's half, part of the engine on every node, makes and removes
// folders. They speak through two annotations of the Node, because a Node is the one object that a node's credentials may
// read and write, and because a message in the API outlives restarts of both ends:
//
//	local-storage.skerry.io/request  by the server: folders to make and to remove
//	local-storage.skerry.io/report   by the node: where its folders are, what it has made, removed, and could not do
//
// Both say how things shall be and are, not what to do next, so each half can be repeated, stopped anywhere, and begin again. A
// request stays until the report agrees and the volume that it was about is made or gone; then both are dropped.
//
//	claim, and a node chosen by the scheduler -> request make -> report made -> volume -> request dropped
//	claim deleted, volume released            -> request remove -> report removed -> volume deleted -> request dropped
//	claim deleted before there was a volume   -> request remove -> report removed -> request dropped
//
// A volume is of the type "local", which lets kubelet apply fsGroup, unless the claim has the annotation volumeType: hostPath. Its
// size is recorded and not enforced. Its folder is open to all (0777), as pods run as any user, inside one that only root may
// enter. A node only touches names directly below its own folder, whatever it is asked; the folder is its own setting
// and nobody else's. A folder is renamed before it is emptied, so that no half of a volume ever has a volume's name, and it is
// not emptied while something is mounted inside it.
package localstorage

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// Name of the component.
	Name = "local-storage"
	// Provisioner is in the StorageClass, in claims and in volumes.
	Provisioner = "rancher.io/local-path"

	requestAnnotation = "local-storage.skerry.io/request"
	reportAnnotation  = "local-storage.skerry.io/report"

	// most is how many folders a request names at most of a kind, so that a Node stays small. The others wait.
	most = 50
)

// request is what a node shall have and not have.
type request struct {
	Make   []string `json:"make,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// report is a node's answer to a request: it speaks only of what is asked.
type report struct {
	Root    string            `json:"root"` // the folder of the folders
	Made    []string          `json:"made,omitempty"`
	Removed []string          `json:"removed,omitempty"`
	Failed  map[string]string `json:"failed,omitempty"` // folder -> why
}

// readAnnotation reads one of the two into v; one that is missing or broken is as if empty.
func readAnnotation(n *corev1.Node, name string, v any) {
	if text := n.Annotations[name]; text != "" {
		_ = json.Unmarshal([]byte(text), v)
	}
}

// annotate is the patch that sets an annotation of a Node, or takes it away.
func annotate(name string, v any, empty bool) ([]byte, error) {
	var value any
	if !empty {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		value = string(text)
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{name: value}}})
}

// folderOf is the folder of a claim's volume: unmistakable, and telling for a person who looks into the node.
func folderOf(claim *corev1.PersistentVolumeClaim) string {
	folder := volumeOf(claim) + "_" + claim.Namespace + "_" + claim.Name
	if len(folder) > 255 { // the most a file system takes
		return volumeOf(claim)
	}
	return folder
}

func volumeOf(claim *corev1.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }

// checkFolder refuses what is not a name of ours. Names of claims have no slashes, so this is only ever about a request that was
// tampered with.
func checkFolder(folder string) error {
	if !isFolder(folder) {
		return fmt.Errorf("%q is not the name of a volume's folder", folder)
	}
	return nil
}

func isFolder(name string) bool {
	return strings.HasPrefix(name, "pvc-") && !strings.ContainsAny(name, "/\x00") && len(name) <= 255
}

func add(list []string, s string) []string {
	if !slices.Contains(list, s) {
		list = append(list, s)
	}
	return list
}
