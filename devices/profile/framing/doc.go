// Package framing cuts what a device sends over a serial line into units: lines,
// telegrams, binary frames. It is pure, and bounded in time and memory whatever
// comes; after noise and after cut frames it finds the next good one.
//
// A [Rule] says how a firmware marks the beginning and the end of what it sends.
// It is the section framing of a profile. [New] makes a [Framer] of it, which is
// fed with bytes as they come; [Rule.Open] opens one frame, and refuses it where
// its checksum is wrong.
package framing
