package istiod

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
)

const pilot = "istio.io/istio/pilot/cmd/pilot-discovery"

// binary is istiod's program; kept is how long one of another version stays in the cache.
const (
	binary = "pilot-discovery"
	kept   = 7 * 24 * time.Hour
)

// TestMain fails rather than skips: whoever runs this module wants it to be run.
func TestMain(m *testing.M) {
	if os.Getenv(apitest.BinariesEnv) == "" {
		fmt.Fprintln(os.Stderr, "no API server: set "+apitest.BinariesEnv+" to what `go run ./e2e/kind binaries` prints in the project's top folder")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// built returns the path of istiod's program.
var built = sync.OnceValues(func() (string, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := artifact.Open("", log)
	if err != nil {
		return "", err
	}
	key, err := artifact.NewInputs().AddFile("go.mod").AddFile("go.sum").Add("build", runtime.Version(), runtime.GOARCH, pilot).Key()
	if err != nil {
		return "", err
	}
	place, err := store.Get(context.Background(), binary, key, func(ctx context.Context, dir string) error {
		return binaries.Compile(ctx, ".", pilot, filepath.Join(dir, binary), "")
	})
	if err != nil {
		return "", err
	}
	if err := store.Prune(binary, place, kept); err != nil {
		log.Warn("old programs not removed", "error", err)
	}
	return filepath.Join(place, binary), nil
})
