package coap

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// An ear understands devices that are asked, and knows what they can be told.
type ear struct {
	profiles *profile.Library

	mu      sync.Mutex
	session *profile.Session
}

func newEar(profiles *profile.Library) *ear {
	return &ear{profiles: profiles, session: profiles.NewSession(nil)}
}

// hear reads a body of a device. A message that makes a decoder panic is one
// that it does not understand.
func (e *ear) hear(d Device, m profile.Message) (out profile.Output, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder panics: %v", r)
		}
	}()
	return e.session.HearBody(d.Device.Profile, string(d.ID), d.Place, m)
}

// controls gives what a device can be told.
func (e *ear) controls(d Device) (all []devices.Control) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session.Expect(d.Device.Profile, string(d.ID))
	for _, c := range e.session.Commands(d.Device.Profile, string(d.ID)) {
		all = append(all, c.Control())
	}
	return all
}

var methods = map[string]codes.Code{"get": codes.GET, "post": codes.POST, "put": codes.PUT, "delete": codes.DELETE}

// encode makes the request that gives a device a command. own is the path that
// the device is at.
func (e *ear) encode(d Device, c devices.Command, own []string) (request, devices.Confirmation, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session.Expect(d.Device.Profile, string(d.ID))
	out, err := e.session.Encode(d.Device.Profile, string(d.ID), c.Name, c.Argument)
	if err != nil {
		return request{}, devices.Confirmation{}, err
	}
	path, query, _ := strings.Cut(out.Topic, "?")
	q := get(append(slices.Clip(own), segments(path)...))
	if strings.HasPrefix(path, "/") {
		q.path = segments(path)
	}
	if query != "" {
		q.query = strings.Split(query, "&")
	}
	q.code, q.payload, q.format = methods[out.Method], out.Payload, out.Format
	return q, devices.Confirmation{Field: out.Field, Value: out.Value, Within: out.Within}, nil
}

// segments gives the parts of a path that are not empty.
func segments(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" })
}

// unescaped gives the parts of a URL's path (RFC 7252 section 6.4).
func unescaped(u *url.URL) (all []string) {
	for _, s := range segments(u.EscapedPath()) {
		if part, err := url.PathUnescape(s); err == nil {
			all = append(all, part)
		}
	}
	return all
}

// queries gives the parts of a URL's query (RFC 7252 section 6.4).
func queries(u *url.URL) (all []string) {
	for s := range strings.SplitSeq(u.RawQuery, "&") {
		if part, err := url.PathUnescape(s); err == nil && part != "" {
			all = append(all, part)
		}
	}
	return all
}
