package coap_test

import (
	"sync"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// Many devices at once: every reading arrives once.
func TestManyDevices(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	const posters, posts = 100, 20
	var wg sync.WaitGroup
	for range posters {
		p := poster(t, s.Addr())
		wg.Go(func() {
			for range posts {
				if code, err := p.Post(t.Context(), "/d/kitchen", coap.SenMLJSON, senml("1")); err != nil || code != coap.Changed {
					t.Errorf("want 2.04, got %v, %v", code, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(sink.WaitMessages(t, posters*posts)); n != posters*posts {
		t.Errorf("%d readings were reported %d times", posters*posts, n)
	}
}
