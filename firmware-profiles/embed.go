// Package profiles holds the firmware profiles that come with the program. Each
// is a file <id>.yaml, in the language that package devices/profile reads, with
// samples in testdata/<id>.json: messages of real devices, where they were seen,
// and the readings that they hold, which the tests of devices/profile compare.
package profiles

import "embed"

// FS has one file a profile, and usb.json, which says what USB devices are.
//
//go:embed *.yaml usb.json
var FS embed.FS

// Samples has messages of real devices, of which pages about profiles show one:
// testdata/<id>.jsonl.
//
//go:embed testdata/*.jsonl
var Samples embed.FS
