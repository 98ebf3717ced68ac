package profile

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// parseXML reads an XML document of at most so many elements: what is in the
// root is the document. An element with others in it is an object, those of one
// name are a list, and the text of any other is a bare value. Attributes and
// names of namespaces are left out.
func parseXML(payload []byte, most int) (*node, error) {
	r := xmlReader{d: xml.NewDecoder(bytes.NewReader(payload)), left: most, most: most}
	for {
		token, err := r.token()
		switch start, ok := token.(xml.StartElement); {
		case errors.Is(err, io.EOF):
			return nil, errors.New("not XML: no element")
		case err != nil:
			return nil, fmt.Errorf("not XML: %w", err)
		case ok:
			n, err := r.element(start, 0)
			if err != nil {
				return nil, fmt.Errorf("not XML: %w", err)
			}
			return n, nil
		}
	}
}

type xmlReader struct {
	d          *xml.Decoder
	left, most int
}

// token gives the next one. The decoder's own errors quote what they found,
// whatever bytes that are.
func (r *xmlReader) token() (xml.Token, error) {
	token, err := r.d.Token()
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("wrong at byte %d", r.d.InputOffset())
	}
	return token, err
}

// element reads what stands between the start of an element and its end.
func (r *xmlReader) element(start xml.StartElement, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("deeper than %d", maxDepth)
	}
	if r.left--; r.left < 0 {
		return nil, fmt.Errorf("more than %d elements", r.most)
	}
	if len(start.Name.Local) > maxMemberName {
		return nil, fmt.Errorf("a name of %d bytes, more than %d", len(start.Name.Local), maxMemberName)
	}
	var text strings.Builder
	n := &node{kind: objectNode}
	at := make(map[string]int)
	for {
		token, err := r.token()
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.StartElement:
			inner, err := r.element(t, depth+1)
			if err != nil {
				return nil, err
			}
			i, again := at[t.Name.Local]
			switch {
			case !again:
				at[t.Name.Local] = len(n.members)
				n.members = append(n.members, member{t.Name.Local, &node{kind: listNode, items: []*node{inner}}})
			default:
				n.members[i].node.items = append(n.members[i].node.items, inner)
			}
		case xml.EndElement:
			for i, m := range n.members {
				if len(m.node.items) == 1 {
					n.members[i].node = m.node.items[0]
				}
			}
			if len(n.members) > 0 {
				return n, nil
			}
			literal := strings.TrimSpace(text.String())
			return &node{value: bare(literal), text: literal}, nil
		}
	}
}
