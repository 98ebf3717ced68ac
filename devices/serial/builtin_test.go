package serial_test

import (
	"testing"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

// builtin gives one of the profiles that the gateway comes with.
func builtin(t testing.TB, name string) *profile.Profile {
	t.Helper()
	set, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	p := set.Get(name)
	if p == nil {
		t.Fatalf("there is no profile %s", name)
	}
	return p
}
