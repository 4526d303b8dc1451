package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	ctrapp "github.com/containerd/containerd/v2/cmd/ctr/app"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways a kubeconfig may say who one is
	"k8s.io/component-base/cli"
	componentversion "k8s.io/component-base/version"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/skerry-os/skerry/pkg/agent"
	"github.com/skerry-os/skerry/pkg/machine"
)

func kubernetesVersion() string { return componentversion.Get().GitVersion }

// kubectl runs as upstream's does; without a kubeconfig of the caller's own it uses this server's.
func kubectl(args []string) int {
	if err := defaultKubeconfig(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "kubectl:", err)
		return 1
	}
	os.Args = args // its plugins and its messages look there
	kubectlutil.BehaviorOnFatal(func(msg string, code int) {
		if msg != "" {
			_, _ = fmt.Fprintln(os.Stderr, msg)
		}
		os.Exit(code)
	})
	if err := cli.RunNoErrOutput(kubectlcmd.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}

func defaultKubeconfig() error {
	if os.Getenv("KUBECONFIG") != "" {
		return nil
	}
	if home, err := os.UserHomeDir(); err == nil {
		if _, err := os.Stat(filepath.Join(home, ".kube", "config")); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return os.Setenv("KUBECONFIG", defaultWriteKubeconfig)
}

// ctr runs as containerd's does, on this node's containerd and in Kubernetes' namespace unless told otherwise.
func ctr(args []string) int {
	set := func(env, value string) {
		if os.Getenv(env) == "" {
			_ = os.Setenv(env, value)
		}
	}
	set("CONTAINERD_ADDRESS", agent.Socket(machine.DataDir))
	set("CONTAINERD_NAMESPACE", "k8s.io")
	if err := ctrapp.New().Run(context.Background(), slices.Concat([]string{"ctr"}, args[1:])); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "ctr:", err)
		return 1
	}
	return 0
}
