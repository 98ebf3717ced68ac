package coap

import (
	"slices"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

// ownLinks are what a device finds that looks around (RFC 6690). They name no
// devices: anybody can ask.
var ownLinks = []string{
	`</d>;title="POST or PUT readings to /d/<device>";ct="0 50 60 110 112"`,
	`</rd>;rt="core.rd";ct=40`,
	`</.well-known/core>;ct=40`,
}

// links serves /.well-known/core, filtered by one attribute (RFC 6690 section
// 4.1).
func (s *service) links(ex *exchange) response {
	m := ex.request
	if m.Code != codes.GET {
		return response{code: codes.MethodNotAllowed, payload: []byte("use GET")}
	}
	if accept, err := m.Options.GetUint32(message.Accept); err == nil && accept != linkList {
		return response{code: codes.NotAcceptable, payload: []byte("this is content format 40")}
	}
	query, err := queryOf(m)
	if err != nil {
		return *badRequest("%v", err)
	}
	var wanted []string
	for _, text := range ownLinks {
		l, _ := profile.ParseLinks([]byte(text)) // they are ours
		if matches(l[0], query) {
			wanted = append(wanted, text)
		}
	}
	r := response{code: codes.Content, payload: []byte(strings.Join(wanted, ","))}
	r.addUint(message.ContentFormat, linkList)
	const overhead = 4 + 8 + 2 + 5 + 4 + 1 // header, token, options, marker
	return paged(r, m, ex.peer.room()-overhead)
}

// matches reports whether a link has all that is asked for; a * at the end is
// anything.
func matches(l profile.Link, query map[string]string) bool {
	for name, want := range query {
		has := []string{l.Target}
		if name != "href" {
			has = strings.Fields(l.Attribute(name))
		}
		prefix, any := strings.CutSuffix(want, "*")
		if !slices.ContainsFunc(has, func(v string) bool { return v == want || any && strings.HasPrefix(v, prefix) }) {
			return false
		}
	}
	return true
}
