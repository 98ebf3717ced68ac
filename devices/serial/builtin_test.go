package serial_test

import (
	"sync"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

// library has the profiles that the gateway comes with, which are many to read.
var library = sync.OnceValues(profile.Builtin)

// builtin gives one of them.
func builtin(t testing.TB, name string) *profile.Profile {
	t.Helper()
	set, err := library()
	if err != nil {
		t.Fatal(err)
	}
	p := set.Get(name)
	if p == nil {
		t.Fatalf("there is no profile %s", name)
	}
	return p
}
