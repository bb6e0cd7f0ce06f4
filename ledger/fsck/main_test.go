package fsck_test

import (
	"io"
	"os"
	"testing"

	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false) // the writer's library is talkative
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}
