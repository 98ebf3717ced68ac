package profile

import "github.com/porchlight-iot/porchlight/strictyaml"

// Schema gives the JSON Schema of profiles, for editors.
func Schema() ([]byte, error) {
	p := defaults()
	return strictyaml.Schema("Porchlight firmware profile", &p)
}
