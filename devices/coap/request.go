package coap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// Content formats (RFC 7252 section 12.3, RFC 8428 section 12.3).
const (
	NoFormat  = -1 // the message does not say
	TextPlain = 0
	linkList  = 40
	Octets    = 42
	JSON      = 50
	CBOR      = 60
	SenMLJSON = 110
	SenMLCBOR = 112
	LwM2MTLV  = 11542
)

const (
	retryWhenBusy = 10 // seconds, as Max-Age of 5.03
	retryWhenFull = 30

	maxDiagnostic = 200 // bytes of text in an answer
)

// A service answers requests for a [Server].
type service struct {
	*session
	server    *Server
	directory directory
}

// request does what a request asks. Where readings were taken it returns their
// receipt, and the response is valid only when that is done without an error.
// A response without a code is none: see [session.unsure].
func (s *service) request(ex *exchange) (response, devices.Receipt) {
	m := ex.request
	path := pathOf(m)
	switch {
	case len(path) == 2 && path[0] == ".well-known" && path[1] == "core":
		return s.links(ex), nil
	case len(path) == 2 && path[0] == ".well-known" && path[1] == "rd",
		len(path) > 0 && len(path) <= 2 && path[0] == "rd":
		return s.register(ex, path), nil
	case len(path) < 2 || path[0] != "d":
		return notFound("nothing is here, post to /d/<device>"), nil
	}
	device, ok := (*s.server.devices.Load())[devices.ID(path[1])]
	if r, may := s.may(ex.peer, path[1], device); !may {
		s.sink.Reject(ex.peer.name, fmt.Errorf("cannot take a reading of %.60q: %s", path[1], r.payload))
		return r, nil
	}
	if !ok {
		if !s.meet(ex, path) {
			s.sink.Reject(ex.peer.name, fmt.Errorf("cannot take a reading of %.60q: no such CoAP device is configured", path[1]))
		}
		return notFound("no such device is configured"), nil
	}
	if m.Code != codes.POST && m.Code != codes.PUT {
		return methodNotAllowed(), nil
	}
	payload, answer := s.body(ex, string(device.ID))
	if answer != nil {
		return *answer, nil
	}
	r, receipt := s.post(ex, device, strings.Join(path[2:], "/"), payload)
	return inBlocks(r, m), receipt
}

// body gives the body of a request once it is whole; else the answer to this
// block of it.
func (s *service) body(ex *exchange, source string) ([]byte, *response) {
	option, err := ex.request.Options.GetUint32(message.Block1)
	if err != nil {
		return ex.request.Payload, nil
	}
	bl, err := parseBlock(option)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	payload, answer := s.join(ex.peer, ex.request, bl)
	if answer != nil && answer.code != codes.Continue {
		s.sink.Reject(source, fmt.Errorf("cannot take a body in blocks: %s", answer.payload))
	}
	return payload, answer
}

// inBlocks says in the response to a body's last block that it was that.
func inBlocks(r response, m message.Message) response {
	if option, err := m.Options.GetUint32(message.Block1); err == nil {
		r.addUint(message.Block1, option)
	}
	return r
}

// may says whether a peer may post as a device, which need not be configured: one
// that has proved who it is as that and nobody else, and another where the device
// has no key by which it could prove it.
func (s *service) may(p *peer, name string, device Device) (response, bool) {
	keys := *s.server.keys.Load()
	_, secret := keys[name]
	if !secret && device.Identity != "" {
		_, secret = keys[device.Identity]
	}
	switch {
	case p.who == "" && secret:
		return response{code: codes.Unauthorized, payload: []byte("this device has a key, and has to post by coaps")}, false
	case p.who != "" && p.who != name && (device.Identity == "" || p.who != device.Identity):
		return response{code: codes.Forbidden, payload: []byte("a device may post as itself only")}, false
	}
	return response{}, true
}

// meet shows a device that is not configured, if its message can be read. The
// answer is the same whether or not that is so. A body in blocks would have to
// be kept for it.
func (s *service) meet(ex *exchange, path []string) bool {
	m := ex.request
	profiles := s.server.profiles.Load()
	if profiles == nil || m.Code != codes.POST && m.Code != codes.PUT || m.Options.HasOption(message.Block1) {
		return false
	}
	out, err := profiles.Posted(profile.Message{
		Topic: strings.Join(path[2:], "/"), Payload: m.Payload, ContentFormat: formatOf(m), Received: ex.came,
	})
	if err != nil {
		return false
	}
	stranger := devices.Stranger{
		Transport: "coap", Place: path[1], Peer: ex.peer.name, Profile: out.Profile,
		Identity: out.Identity, Name: out.About.Name, Model: strings.TrimSpace(out.About.Maker + " " + out.About.Model),
	}
	for _, r := range out.Readings {
		stranger.Fields = append(stranger.Fields, r.Fields...)
	}
	return s.sink.Unknown(stranger)
}

func formatOf(m message.Message) int {
	if f, err := m.Options.GetUint32(message.ContentFormat); err == nil {
		return int(f)
	}
	return NoFormat
}

// post hands the payload to the device's profile and the readings to the sink.
func (s *service) post(ex *exchange, device Device, field string, payload []byte) (response, devices.Receipt) {
	format := formatOf(ex.request)
	switch format {
	case NoFormat, TextPlain, Octets, JSON, CBOR, SenMLJSON, SenMLCBOR, LwM2MTLV:
	default:
		s.sink.Reject(string(device.ID), fmt.Errorf("cannot read content format %d", format))
		return response{code: codes.UnsupportedMediaType, payload: fmt.Appendf(nil, "content format %d is not supported: use 110, 112, 50, 60 or 0", format)}, nil
	}
	out, err := device.decode(profile.Message{
		Topic: field, Payload: payload, ContentFormat: format, Received: ex.came,
	})
	if err != nil {
		s.sink.Reject(string(device.ID), err)
		return *badRequest("%v", err), nil
	}
	if out.Availability != devices.AvailabilityUnknown {
		s.sink.Availability(device.ID, out.Availability, false)
	}
	if len(out.Readings) == 0 {
		if out.Availability != devices.AvailabilityUnknown {
			return response{code: codes.Changed}, nil
		}
		err := errors.New("the payload has no reading")
		s.sink.Reject(string(device.ID), err)
		return *badRequest("%v", err), nil
	}
	redelivered := ex.confirmable && s.unsure(ex.came)
	receipt, err := s.sink.Report(s.ctx, devices.Message{
		Readings: out.Readings,
		Origin: devices.NewOrigin([]byte("coap"), []byte(ex.peer.name),
			binary.BigEndian.AppendUint16(nil, uint16(ex.mid)), ex.request.Token, payload),
		Redelivered: redelivered,
	})
	switch {
	case err != nil && redelivered:
		return response{}, nil
	case errors.Is(err, devices.ErrFull):
		return unavailable("the gateway is full", retryWhenFull), nil
	case err != nil:
		return unavailable("the gateway cannot take the reading", retryWhenBusy), nil
	}
	return response{code: codes.Changed}, receipt
}

// decode has a message that makes a decoder panic be one that it does not
// understand: it ends nobody else.
func (d Device) decode(m profile.Message) (out profile.Output, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder panics: %v", r)
		}
	}()
	return d.Profile.Decode(d.Place, m)
}

// critical looks for options that must be understood and are not (RFC 7252
// section 5.4.1), and gives the answer to a confirmable request that has one.
func critical(m message.Message) (response, bool) {
	for _, o := range m.Options {
		switch o.ID {
		case message.URIHost, message.URIPort, message.URIPath, message.URIQuery,
			message.Accept, message.Block1, message.Block2:
		case message.ProxyURI, message.ProxyScheme:
			return response{code: codes.ProxyingNotSupported, payload: []byte("this is not a proxy")}, true
		default:
			if o.ID&1 == 1 {
				return response{code: codes.BadOption, payload: fmt.Appendf(nil, "option %d is not supported", o.ID)}, true
			}
		}
	}
	return response{}, false
}

// pathOf gives the segments of the path, without empty ones at its end.
func pathOf(m message.Message) []string {
	var path []string
	for _, o := range m.Options {
		if o.ID == message.URIPath {
			path = append(path, string(o.Value))
		}
	}
	for len(path) > 0 && path[len(path)-1] == "" {
		path = path[:len(path)-1]
	}
	return path
}

// A response is an answer, without what ties it to a request.
type response struct {
	code    codes.Code
	options message.Options
	payload []byte // of an error: text for people (RFC 7252 section 5.5.2)
}

func (r *response) addUint(id message.OptionID, v uint32) {
	r.options = r.options.Add(uintOption(id, v))
}

func badRequest(format string, a ...any) *response {
	return &response{code: codes.BadRequest, payload: fmt.Appendf(nil, format, a...)}
}

func notFound(why string) response {
	return response{code: codes.NotFound, payload: []byte(why)}
}

func methodNotAllowed() response {
	return response{code: codes.MethodNotAllowed, payload: []byte("use POST or PUT")}
}

// tooLarge says how much can be taken (RFC 7959 section 2.9.3).
func tooLarge() response {
	r := response{code: codes.RequestEntityTooLarge, payload: fmt.Appendf(nil, "at most %d bytes are taken", maxMessage)}
	r.addUint(message.Size1, maxMessage)
	return r
}

// unavailable asks the device to try again in so many seconds (RFC 7252
// section 5.9.3.4).
func unavailable(why string, seconds uint32) response {
	r := response{code: codes.ServiceUnavailable, payload: []byte(why)}
	r.addUint(message.MaxAge, seconds)
	return r
}

// afforded cuts the text of an error to what may be sent to a peer.
func afforded(p *peer, r response, token message.Token) response {
	if r.code < codes.BadRequest {
		return r
	}
	room := p.room() - 4 - len(token) - 1
	for _, o := range r.options {
		room -= 3 + len(o.Value)
	}
	if room = max(0, room); len(r.payload) > room {
		r.payload = []byte(strings.ToValidUTF8(string(r.payload[:room]), ""))
	}
	return r
}

// encode writes a message of ours, with text in it cut to a size that cannot
// be used to amplify a flood.
func encode(m message.Message) []byte {
	if m.Code >= codes.BadRequest && len(m.Payload) > maxDiagnostic {
		text := strings.ToValidUTF8(string(m.Payload[:maxDiagnostic]), "")
		m.Payload = []byte(text)
	}
	b, err := encoded(m)
	if err != nil {
		panic(fmt.Sprintf("coap: cannot encode an answer: %v", err)) // all its parts are ours
	}
	return b
}

func encoded(m message.Message) ([]byte, error) {
	size, err := coder.DefaultCoder.Size(m)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a message: %w", err)
	}
	b := make([]byte, size)
	if _, err = coder.DefaultCoder.Encode(m, b); err != nil {
		return nil, fmt.Errorf("cannot encode a message: %w", err)
	}
	return b, nil
}
