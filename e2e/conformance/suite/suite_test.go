package suite

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	conformancedata "k8s.io/kubernetes/test/conformance/testdata"
	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	"k8s.io/kubernetes/test/fixtures"

	"github.com/skerry-os/skerry/e2e/conformance/journal"

	// Every folder with a [Conformance] test in it.
	_ "k8s.io/kubernetes/test/e2e/apimachinery"
	_ "k8s.io/kubernetes/test/e2e/apps"
	_ "k8s.io/kubernetes/test/e2e/architecture"
	_ "k8s.io/kubernetes/test/e2e/auth"
	_ "k8s.io/kubernetes/test/e2e/common"
	_ "k8s.io/kubernetes/test/e2e/dra"
	_ "k8s.io/kubernetes/test/e2e/instrumentation"
	_ "k8s.io/kubernetes/test/e2e/kubectl"
	_ "k8s.io/kubernetes/test/e2e/network"
	_ "k8s.io/kubernetes/test/e2e/node"
	_ "k8s.io/kubernetes/test/e2e/scheduling"
	_ "k8s.io/kubernetes/test/e2e/storage"

	// What the framework learns by being linked.
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/utils/ktesting/format"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	for _, fs := range []testfiles.EmbeddedFileSource{manifests.GetE2ETestingManifestsFS(), fixtures.GetTestFixturesFS(), conformancedata.GetConformanceTestdataFS()} {
		testfiles.AddFileSource(fs)
	}
	if framework.TestContext.KubeConfig == "" {
		fmt.Println("no cluster: give -kubeconfig (make conformance does)")
		os.Exit(0)
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	// Not earlier: that call lists all tests with a copy of the suite, and what stood at the top beside containers is gone.
	ginkgo.BeforeEach(skipPassed)
	ginkgo.ReportAfterEach(record)
	os.Exit(m.Run())
}

func TestE2E(t *testing.T) { e2e.RunE2ETests(t) }

const passedMessage = "passed before"

// What passed in an earlier run need not run again: before anything of the framework, a look at the list.
func skipPassed() {
	if passedBefore()[ginkgo.CurrentSpecReport().FullText()] {
		ginkgo.Skip(passedMessage)
	}
}

var passedBefore = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	data, err := os.ReadFile(os.Getenv(journal.PassedEnv))
	if err != nil && os.Getenv(journal.PassedEnv) != "" {
		panic(err)
	}
	for line := range strings.Lines(string(data)) {
		names[strings.TrimSuffix(line, "\n")] = true
	}
	return names
})

// Every result is on the disk at once: a run that is cut short goes on where it stopped.
func record(r ginkgo.SpecReport) {
	name := os.Getenv(journal.FileEnv)
	if name == "" || r.State.Is(types.SpecStatePending) || r.State.Is(types.SpecStateSkipped) && (r.Failure.Message == "" || r.Failure.Message == passedMessage) {
		return
	}
	e := journal.Entry{Name: r.FullText(), State: r.State.String(), Seconds: time.Since(r.StartTime).Seconds(), End: time.Now()}
	if r.State.Is(types.SpecStateFailureStates | types.SpecStateSkipped) {
		e.Message = r.Failure.Message
		e.Where = r.Failure.Location.String()
	}
	if r.State.Is(types.SpecStateFailureStates) {
		e.Output = r.CapturedGinkgoWriterOutput
	}
	if err := journal.Append(name, e); err != nil {
		ginkgo.AbortSuite(err.Error())
	}
}
