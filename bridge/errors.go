package bridge

import (
	"encoding/xml"
	"errors"
	"fmt"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

// ErrOffline says that there is no session to publish on.
var ErrOffline = errors.New("there is no XMPP session")

// errTooBig marks a pack on which the stream was closed twice.
var errTooBig = errors.New("the server closes the stream on it")

// A Verdict says what to do with what was to be published.
type Verdict int

// The verdicts.
const (
	Accepted Verdict = iota // the service has it
	Keep                    // send the same bytes again, after a while
	Split                   // it is too big: send less at a time
	SetAside                // it is refused and always will be
	Park                    // the node is refused, not what was to go there: a person must act
)

// String gives the word that logs show.
func (v Verdict) String() string {
	return [...]string{"accepted", "keep", "split", "set aside", "park"}[v]
}

// A step is what the service was asked for.
type step string

const (
	publishing  step = "publish to"
	creating    step = "create"
	configuring step = "configure"
	sharing     step = "set the members of"
	deleting    step = "delete"
	reading     step = "read"
	retracting  step = "remove from"
)

// A refusal is a service's error answer.
type refusal struct {
	step      step
	node      string
	condition stanza.Condition
	detail    string // the PubSub condition inside (XEP-0060 section 16.4), or ""
	text      string
}

// Error names the condition; the service's own words are only for people.
func (r *refusal) Error() string {
	s := fmt.Sprintf("cannot %s node %s: the service says %s", r.step, r.node, r.condition)
	if r.detail != "" {
		s += ", " + r.detail
	}
	if r.text != "" {
		s += fmt.Sprintf(" (%.200q)", r.text)
	}
	return s
}

// is reports whether err is a refusal with that condition.
func is(err error, condition stanza.Condition) bool {
	var r *refusal
	return errors.As(err, &r) && r.condition == condition
}

// Judge says what a failed or successful Publish means for what was to be
// published. It goes by conditions, never by texts (RFC 6120 section 8.3.3,
// XEP-0060 section 7.1.3).
func Judge(err error) Verdict {
	var r *refusal
	switch {
	case err == nil:
		return Accepted
	case errors.Is(err, errTooBig):
		return Split
	case errors.Is(err, errPayload):
		return SetAside
	case !errors.As(err, &r):
		return Keep
	case r.step != publishing:
		return judgeNode(r.condition)
	case r.detail == "payload-too-big":
		return Split
	}
	switch r.condition {
	case stanza.BadRequest, stanza.NotAcceptable:
		return SetAside
	case stanza.Forbidden, stanza.Conflict:
		// A conflict that is left after the node was configured is a node
		// that the service will not have otherwise.
		return Park
	}
	return Keep
}

// judgeNode is for refusals of the node itself, which say nothing against what
// was to be published. ejabberd answers a form that it dislikes with
// resource-constraint, so that is no reason to wait here.
func judgeNode(condition stanza.Condition) Verdict {
	switch condition {
	case stanza.Forbidden, stanza.NotAllowed, stanza.NotAuthorized, stanza.BadRequest,
		stanza.NotAcceptable, stanza.ResourceConstraint, stanza.FeatureNotImplemented, stanza.Conflict:
		return Park
	}
	return Keep
}

// refused turns an error answer into a refusal; other errors say what was
// tried.
func refused(s step, node string, answer stream.Stanza, err error) error {
	var condition stanza.Error
	if !errors.As(err, &condition) {
		return fmt.Errorf("cannot %s node %s: %w", s, node, err)
	}
	return &refusal{s, node, condition.Condition, pubsubCondition(answer), condition.Text[""]}
}

// pubsubCondition is the name of the PubSub error in an error answer.
func pubsubCondition(answer stream.Stanza) string {
	var e struct {
		Error struct {
			Conditions []struct{ XMLName xml.Name } `xml:",any"`
		} `xml:"error"`
	}
	if answer.Unmarshal(&e) != nil {
		return ""
	}
	for _, c := range e.Error.Conditions {
		if c.XMLName.Space == "http://jabber.org/protocol/pubsub#errors" {
			return c.XMLName.Local
		}
	}
	return ""
}
