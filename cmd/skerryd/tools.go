package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	ctrapp "github.com/containerd/containerd/v2/cmd/ctr/app"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways a kubeconfig may say who one is
	"k8s.io/client-go/util/exec"
	"k8s.io/component-base/cli"
	componentversion "k8s.io/component-base/version"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/crictl"
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

// runCrictl runs our own of that name, on this node's containerd.
func runCrictl(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := crictl.New(agent.Socket(machine.DataDir))
	cmd.SetArgs(args[1:])
	cmd.SetOut(os.Stdout)
	err := cmd.ExecuteContext(ctx)
	var code exec.CodeExitError
	switch {
	case err == nil, ctx.Err() != nil:
		return 0
	case errors.As(err, &code): // of a command in a container
		return code.Code
	}
	_, _ = fmt.Fprintln(os.Stderr, "crictl:", err)
	return 1
}
