package verify_test

import (
	"testing"

	"github.com/holdfast-dev/holdfast/verify"
)

// What an index calls a platform is read as a container runtime reads it: another
// spelling is no way around what is asked of it.
func TestPlatformName(t *testing.T) {
	t.Parallel()
	for in, want := range map[[3]string]string{
		{"linux", "amd64", ""}: "linux/amd64", {"Linux", "AMD64", ""}: "linux/amd64", {"linux", "x86_64", ""}: "linux/amd64",
		{"linux", "x86-64", ""}: "linux/amd64", {"linux", "amd64", "v1"}: "linux/amd64", {"linux", "amd64", "v3"}: "linux/amd64/v3",
		{"linux", "aarch64", ""}: "linux/arm64", {"linux", "arm64", "v8"}: "linux/arm64", {"linux", "arm64", "8"}: "linux/arm64",
		{"linux", "arm", ""}: "linux/arm/v7", {"linux", "armhf", ""}: "linux/arm/v7", {"linux", "armel", ""}: "linux/arm/v6",
		{"linux", "i386", ""}: "linux/386", {"windows", "amd64", ""}: "windows/amd64",
		{"", "amd64", ""}: verify.AnyPlatform, {"linux", "", ""}: verify.AnyPlatform, {" ", " ", ""}: verify.AnyPlatform,
	} {
		if got := verify.PlatformName(in[0], in[1], in[2]); got != want {
			t.Errorf("%q is %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "linux": "", "any": "", "/amd64": "", "linux/": "", "a/b/c/d": "",
	} {
		if got := verify.ParsePlatform(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
