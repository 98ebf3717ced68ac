package stream

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"mellium.im/xmpp/jid"
	xmppstream "mellium.im/xmpp/stream"
)

const (
	// maxStanza bounds what is kept of one stanza; what is larger is dropped.
	maxStanza = 256 << 10
	// maxDepth bounds how deep elements of a stanza may lie in each other.
	maxDepth = 32
	// maxAttr bounds the attributes of one element.
	maxAttr = 128
)

// A Stanza is a copy of one incoming stanza.
type Stanza struct {
	Name     string // "iq", "message", "presence"
	ID, Type string
	From, To jid.JID // zero where there is none
	Lang     string
	Inner    []byte   // the children, as XML with its namespaces
	Child    xml.Name // the first child element
}

// Unmarshal decodes the whole stanza into v as [xml.Unmarshal] does, whatever
// is in it.
func (st Stanza) Unmarshal(v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot decode a stanza: %v", r)
		}
	}()
	start := xml.StartElement{Name: xml.Name{Local: st.Name}}
	for _, a := range []struct{ name, value string }{
		{"id", st.ID}, {"type", st.Type}, {"from", st.From.String()}, {"to", st.To.String()},
	} {
		if a.value != "" {
			start.Attr = append(start.Attr, xml.Attr{Name: xml.Name{Local: a.name}, Value: a.value})
		}
	}
	var b bytes.Buffer
	e := xml.NewEncoder(&b)
	if err := errors.Join(e.EncodeToken(start), e.Flush()); err != nil {
		return err
	}
	b.Write(st.Inner)
	fmt.Fprintf(&b, "</%s>", st.Name)
	return xml.Unmarshal(b.Bytes(), v)
}

// errDropped says that a stanza was read to its end and is not to be used.
var errDropped = errors.New("stanza dropped")

// A reader reads stanzas off a stream whose negotiation is over. The library's
// own reader is not used: it takes any element in the stream namespace, at any
// depth, for the server's word that the stream ends.
type reader struct {
	conn  *conn
	space string // of stanzas
	d     *xml.Decoder
}

func newReader(c *conn, space string) *reader {
	// The decoder that read the stream's header is gone; the header declares
	// the namespaces that the rest relies on.
	header := fmt.Sprintf("<stream:stream xmlns='%s' xmlns:stream='%s'>", space, xmppstream.NS)
	r := &reader{conn: c, space: space, d: xml.NewDecoder(io.MultiReader(strings.NewReader(header), c))}
	r.d.Token()
	return r
}

// next gives the next stanza. errDropped is not the end; every other error is.
func (r *reader) next() (Stanza, error) {
	for {
		token, err := r.d.Token()
		if err != nil {
			return Stanza{}, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			st, err := r.element(t)
			r.conn.settle()
			return st, err
		case xml.EndElement:
			return Stanza{}, io.EOF // </stream:stream>
		case xml.CharData:
			r.conn.settle() // a keepalive (RFC 6120 section 4.6.1)
		case xml.Comment, xml.ProcInst, xml.Directive:
			// Restricted (RFC 6120 section 11.1), but no reason to leave: only
			// the server itself can have sent it.
			r.conn.settle()
		}
	}
}

// element reads one element at the level of the stream.
func (r *reader) element(start xml.StartElement) (Stanza, error) {
	if start.Name.Space == xmppstream.NS && start.Name.Local == "error" {
		var e xmppstream.Error
		if err := r.d.DecodeElement(&e, &start); err != nil {
			return Stanza{}, err
		}
		return Stanza{}, e
	}
	st, usable := r.begin(start)
	inner, child, err := r.copy()
	if err != nil {
		return Stanza{}, err
	}
	if !usable || inner == nil {
		return st, errDropped
	}
	st.Inner, st.Child = inner, child
	return st, nil
}

// begin reads the attributes. A stanza whose addresses are none is unusable:
// what cannot be named cannot be trusted.
func (r *reader) begin(start xml.StartElement) (st Stanza, usable bool) {
	st.Name = start.Name.Local
	usable = start.Name.Space == r.space && (st.Name == "iq" || st.Name == "message" || st.Name == "presence")
	for _, a := range start.Attr {
		var err error
		switch {
		case a.Name.Space == "" && a.Name.Local == "id":
			st.ID = a.Value
		case a.Name.Space == "" && a.Name.Local == "type":
			st.Type = a.Value
		case a.Name.Space == "" && a.Name.Local == "from":
			st.From, err = jid.Parse(a.Value)
		case a.Name.Space == "" && a.Name.Local == "to":
			st.To, err = jid.Parse(a.Value)
		case a.Name.Local == "lang":
			st.Lang = a.Value
		}
		usable = usable && err == nil
	}
	return st, usable
}

// copy reads up to the end of the element that has begun. inner is nil where
// it is too big or too deep to keep.
func (r *reader) copy() (inner []byte, child xml.Name, err error) {
	var b bytes.Buffer
	e := xml.NewEncoder(&b)
	depth, keep := 0, true
	for {
		token, err := r.d.Token()
		if err != nil {
			return nil, child, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth == 0 && child.Local == "" {
				child = t.Name
			}
			if depth++; depth > maxDepth || len(t.Attr) > maxAttr {
				keep = false
			}
			token = undeclared(t)
		case xml.EndElement:
			if depth--; depth < 0 {
				if err := e.Flush(); err != nil || !keep {
					return nil, child, nil
				}
				return append([]byte{}, b.Bytes()...), child, nil
			}
		case xml.Comment, xml.ProcInst, xml.Directive:
			continue
		}
		if keep && (e.EncodeToken(token) != nil || b.Len() > maxStanza) {
			keep = false
		}
		if !keep {
			b.Reset()
		}
	}
}

// undeclared gives the element without its namespace declarations: the encoder
// makes its own from the names, but for the name in no namespace, which would
// fall into that of the element around it.
func undeclared(t xml.StartElement) xml.StartElement {
	var attr []xml.Attr
	if t.Name.Space == "" {
		attr = append(attr, xml.Attr{Name: xml.Name{Local: "xmlns"}})
	}
	for _, a := range t.Attr {
		if a.Name.Space != "xmlns" && (a.Name.Space != "" || a.Name.Local != "xmlns") {
			attr = append(attr, a)
		}
	}
	t.Attr = attr
	return t
}
