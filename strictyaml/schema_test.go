package strictyaml

import (
	"testing"
	"time"
)

func TestSchema(t *testing.T) {
	type inner struct {
		Port string `yaml:"port,required" doc:"Where <it> is."`
		Baud int    `yaml:"baud" min:"50" max:"4000000"`
	}
	type file struct {
		Mode  string            `yaml:"mode" enum:"ask,off"`
		Wait  time.Duration     `yaml:"wait"`
		Limit Size              `yaml:"limit"`
		On    bool              `yaml:"on"`
		In    *inner            `yaml:"in" doc:"A part."`
		List  []inner           `yaml:"list"`
		Map   map[string]string `yaml:"map"`
		Web   *struct{}         `yaml:"web"`
		Not   int
	}
	got, err := Schema("T", &file{Mode: "ask", Wait: time.Minute, Limit: 256 << 20, In: &inner{Baud: 9600}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "T",
  "type": "object",
  "properties": {
    "mode": {
      "enum": [
        "ask",
        "off"
      ],
      "default": "ask"
    },
    "wait": {
      "type": "string",
      "pattern": "^[-+]?(0|([0-9.]+(ns|us|µs|ms|s|m|h))+)$",
      "default": "1m"
    },
    "limit": {
      "type": [
        "string",
        "integer"
      ],
      "pattern": "^[0-9]+ *([kKmMgG]?[bB]|[kKmMgG][iI][bB])?$",
      "default": "256MiB"
    },
    "on": {
      "type": "boolean",
      "default": false
    },
    "in": {
      "description": "A part.",
      "type": "object",
      "properties": {
        "port": {
          "description": "Where <it> is.",
          "type": [
            "string",
            "number",
            "boolean"
          ]
        },
        "baud": {
          "type": "integer",
          "minimum": 50,
          "maximum": 4000000,
          "default": 9600
        }
      },
      "required": [
        "port"
      ],
      "additionalProperties": false
    },
    "list": {
      "type": "array",
      "items": {
        "type": "object",
        "properties": {
          "port": {
            "description": "Where <it> is.",
            "type": [
              "string",
              "number",
              "boolean"
            ]
          },
          "baud": {
            "type": "integer",
            "minimum": 50,
            "maximum": 4000000
          }
        },
        "required": [
          "port"
        ],
        "additionalProperties": false
      }
    },
    "map": {
      "type": "object",
      "additionalProperties": {
        "type": [
          "string",
          "number",
          "boolean"
        ]
      }
    },
    "web": {
      "type": "object",
      "properties": {},
      "additionalProperties": false
    }
  },
  "additionalProperties": false
}
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
