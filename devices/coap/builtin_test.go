package coap_test

import (
	"sync"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// builtins reads them once.
var builtins = sync.OnceValues(profile.Builtin)

// builtin gives one of the profiles that the gateway comes with.
func builtin(t testing.TB, name string) coap.Decoder {
	t.Helper()
	set, err := builtins()
	if err != nil {
		t.Fatal(err)
	}
	p := set.Get(name)
	if p == nil {
		t.Fatalf("there is no profile %s", name)
	}
	return p
}
