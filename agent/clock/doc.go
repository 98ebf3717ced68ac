// Package clock tells when a reading was taken, on a machine that has no clock
// of its own. A Raspberry Pi starts with the time at which it was switched
// off, or with 1970, and learns the time minutes or days later, if at all.
//
// # Stamps
//
// A reading is not given a time but a [Stamp]: in which boot it came, and how
// long after that boot's beginning (CLOCK_BOOTTIME, which counts through
// suspends and which nobody can set). [Clock.Date] makes a time of it as late
// as possible, when the reading is about to be published: by then the time of
// the boot may have become known, also that of an earlier one.
//
// # What is known
//
// For each boot the clock keeps the spans of boottime in which the time was
// known, and how exactly. It is known while the kernel says that something
// keeps its clock (NTP), or from the XMPP server (XEP-0202). NTP wins. Away
// from a span the time is known less exactly, by [drift]; once it is not known
// to the minute it is called uncertain. A boot that never knew lies between
// the end of the one before it that did and the beginning of the one after it
// that did; its readings keep their distances and have these bounds.
//
// The wall clock is no more than a guess where nothing is known. Nothing is
// ordered by it: order is that of boots, and of boottime within.
//
// # Keeping
//
// The table of boots is kept by the caller: [Clock.State] gives it, [New]
// takes it. The number that a boot has in stamps is made by New, so the state
// must be on disk before, or together with, the first stamp of the boot.
//
// # Goroutines
//
// Methods may be called from any goroutine. Nothing happens by itself but in
// [Clock.Run], which looks at the kernel's clock from time to time; each
// method that needs the present looks by itself, too.
package clock
