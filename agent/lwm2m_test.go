package agent_test

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"
	"github.com/plgd-dev/go-coap/v3/udp/client"
)

// lamp registers with the gateway as a client of LwM2M 1.0 with a thermometer and
// a light. It is written from OMA LwM2M Core 1.0 section 5, on go-coap: no client
// that is a program could be had. With a key it speaks DTLS.
func lamp(t *testing.T, gateway, name, key string) {
	t.Helper()
	var mu sync.Mutex
	light := byte(0)
	router := mux.NewRouter()
	answer := func(w mux.ResponseWriter, format message.MediaType, body []byte, o ...message.Option) {
		if err := w.SetResponse(codes.Content, format, bytes.NewReader(body), o...); err != nil {
			t.Error(err)
		}
	}
	one := func(path, links string, value func() []byte) {
		if err := router.Handle(path, mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
			mu.Lock()
			defer mu.Unlock()
			accept, err := r.Accept()
			var o []message.Option
			if seq, e := r.Observe(); e == nil && seq == 0 {
				o = append(o, message.Option{ID: message.Observe, Value: []byte{5}})
			}
			switch {
			case r.Code() == codes.PUT:
				body, _ := io.ReadAll(r.Body())
				light = body[len(body)-1]
				_ = w.SetResponse(codes.Changed, message.TextPlain, nil)
			case err == nil && accept == message.AppLinkFormat:
				answer(w, message.AppLinkFormat, []byte(links))
			default:
				answer(w, message.AppLwm2mTLV, value(), o...)
			}
		})); err != nil {
			t.Error(err)
		}
	}
	lit := func() []byte { return []byte{0xe1, 0x16, 0xda, light} }
	one("/3303/0", "</3303/0/5700>", func() []byte { return []byte{0xe4, 0x16, 0x44, 0x41, 0xac, 0x00, 0x00} })
	one("/3311/0", "</3311/0/5850>", lit)
	one("/3311/0/5850", "", lit)
	var conn *client.Conn
	var err error
	if key == "" {
		conn, err = udp.Dial(gateway, options.WithMux(router), options.WithErrors(func(error) {}))
	} else {
		conn, err = dtls.Dial(gateway, dtls.NewDTLSClientOptions(
			piondtls.WithPSK(func([]byte) ([]byte, error) { return []byte(key), nil }), piondtls.WithPSKIdentityHint([]byte(name)),
			piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		), options.WithMux(router), options.WithErrors(func(error) {}))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	links := strings.NewReader(`</>;rt="oma.lwm2m",</3303/0>,</3311/0>`)
	query := []message.Option{
		{ID: message.URIQuery, Value: []byte("ep=" + name)}, {ID: message.URIQuery, Value: []byte("lt=300")},
		{ID: message.URIQuery, Value: []byte("lwm2m=1.0")}, {ID: message.URIQuery, Value: []byte("b=U")},
	}
	created, err := conn.Post(t.Context(), "/rd", message.AppLinkFormat, links, query...)
	if err != nil {
		t.Fatal(err)
	}
	if created.Code() != codes.Created {
		t.Fatalf("the registration is answered %v", created.Code())
	}
}
