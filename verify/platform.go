package verify

import (
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AnyPlatform is the name of a manifest in an index that says nothing of where it
// runs: a runtime may take it anywhere.
const AnyPlatform = "any"

// PlatformName returns the normal form of a platform, "linux/arm64" or
// "linux/arm/v6", as container runtimes read what an index says: other spellings of
// an architecture are the same one, and the version of an operating system is not
// looked at. Without an operating system or an architecture it is [AnyPlatform].
func PlatformName(os, arch, variant string) string {
	if strings.TrimSpace(os) == "" || strings.TrimSpace(arch) == "" {
		return AnyPlatform
	}
	return platforms.Format(platforms.Normalize(ocispec.Platform{OS: os, Architecture: arch, Variant: variant}))
}

// ParsePlatform returns the normal form of "os/arch" or "os/arch/variant", or ""
// where s is neither.
func ParsePlatform(s string) string {
	parts := strings.Split(s, "/")
	if len(parts) == 2 {
		parts = append(parts, "")
	}
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return ""
	}
	return PlatformName(parts[0], parts[1], parts[2])
}
