// Package serial hears devices that print lines to a serial port: JSON lines
// and key=value lines, as Arduino sketches and many sensors do.
//
// [Port.Run] reads bytes, frame.go cuts lines out of them, the device's
// profile makes readings of a line. A device cannot be told that a reading
// was not kept, so receipts are ignored.
package serial
