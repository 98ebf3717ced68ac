package profile

import (
	"strings"
	"testing"
)

func TestXML(t *testing.T) {
	n, err := parseXML([]byte(`<?xml version="1.0" ?><vs a="1"><ac>127</ac><cl>255</cl><cl>0</cl><in><x>on</x></in><ds> a &lt; b </ds><no/></vs>`), maxMembers)
	if err != nil {
		t.Fatal(err)
	}
	if v := n.member("ac"); v.kind != valueNode || v.value.Float() != 127 {
		t.Errorf("ac is %+v", v)
	}
	if v := n.member("cl"); v.kind != listNode || len(v.items) != 2 || v.items[0].value.String() != "255" {
		t.Errorf("cl is %+v", v)
	}
	if v := n.member("in").member("x"); v == nil || !v.value.Bool() {
		t.Errorf("in/x is %+v", v)
	}
	if v := n.member("ds"); v.value.String() != "a < b" {
		t.Errorf("ds is %+v", v)
	}
}

func TestXMLRefused(t *testing.T) {
	for name, payload := range map[string]string{
		"empty":       "",
		"text":        "127",
		"cut":         "<vs><ac>127</ac>",
		"crossed":     "<a><b></a></b>",
		"entity":      `<!DOCTYPE v [<!ENTITY e "x">]><v>&e;</v>`,
		"deep":        strings.Repeat("<a>", 1000) + strings.Repeat("</a>", 1000),
		"many":        "<v>" + strings.Repeat("<a/>", maxMembers+1) + "</v>",
		"long name":   "<v><" + strings.Repeat("x", maxMemberName+1) + "/></v>",
		"other bytes": "\xff\xd8\xff",
	} {
		if n, err := parseXML([]byte(payload), maxMembers); err == nil {
			t.Errorf("%s: taken as %+v", name, n)
		}
	}
}
