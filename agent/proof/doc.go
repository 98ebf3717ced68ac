// Package proof counts what becomes of readings, so that the gateway can
// answer for any period: so many measured, so many accepted, so many missing
// and why.
//
// # Rows
//
// Counts are kept in rows of an hour, of UTC; what restarts within it goes on
// with its row. Each reading belongs to the row in which it was given to the
// gateway, whatever becomes of it later: a [Cell] knows the numbers of its
// device's readings while some of them wait. So for each row, device and
// period
//
//	given = accepted + waiting + thinned + lost + unknown
//
// Rows follow each other without a hole. Where nothing was counted, or what was
// counted was lost with the process, a row has a [Gap]: a process that was
// killed covers the time up to when its counts were written last, and no more.
// A hole between rows is one that a damaged file has torn.
//
// # Time
//
// A row's bounds are [Moment]s. While the time is not known they are stamps,
// and are dated when it is, also after a restart. A row that is not dated
// counts in no period, and is told apart.
//
// # Goroutines
//
// Nothing here locks, stores or looks at a clock. The outbox does.
package proof
