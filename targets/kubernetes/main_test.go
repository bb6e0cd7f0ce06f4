package kubernetes

import (
	"os"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main(RenderTask)
	os.Exit(m.Run())
}
