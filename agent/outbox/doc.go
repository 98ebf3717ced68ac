// Package outbox is store and forward: it gives each reading its sequence
// number, keeps what the XMPP server has not accepted yet, and says when a
// device may be acknowledged.
//
// # The way of a reading
//
// Append numbers the readings of a message and keeps them in memory. Next
// freezes the oldest readings of a device into a pack, whose boundaries and
// bytes never change from then on, and hands it out to be sent; a device has
// one pack under way. Settle ends it. What is not settled within CommitAfter
// goes to disk, together with all else that waits (the group commit): first to
// the journal, a file beside the store that takes it in one page and one sync
// (journal.go), and from there to bbolt every few minutes, where it is not
// settled by then. It is sent from memory while it is in the journal, and from
// bbolt later. So nothing is written while the server answers promptly, and
// little while it does not.
//
// # Invariants
//
//   - The readings of one device are settled in order of their sequence.
//   - A reading that is on disk, in the journal or in bbolt, is sent only in a
//     pack whose boundaries are on disk. After a crash it is therefore sent
//     again in the same item.
//   - How big packs are to be (SetRoom) counts where boundaries are made, and
//     never where readings are encoded again within boundaries that are there.
//   - Readings that are being written are not frozen from memory meanwhile:
//     they would be sent under boundaries that the disk does not know.
//   - What memory holds of a device is newer than what bbolt holds of it.
//   - A reading in the journal stays in memory until it is settled or in bbolt.
//   - Sequence numbers are unique within a run; the run is raised on disk
//     before it is used.
//   - What is frozen is neither thinned nor dropped.
//   - A number that does not arrive is told in a [Loss]. What was thinned out is
//     told before what is left of it goes out; the row tells it until then.
//   - A pack's readings are dated with its boundaries: what was published is not
//     dated anew.
//   - The origin of a message whose readings are on disk is on disk as well, or
//     was before they were settled. What was sent from memory alone carries its
//     origin, so that it can be recognised where it arrived (hold.go).
//
// # Counts
//
// What became of each reading is counted in the book of package proof
// (counts.go). Counts may be older on disk than readings, or newer, by what was
// settled while a commit was made: Open has them agree. So the book keeps the
// numbers of readings until the disk has nothing of them that could wait again.
//
// # Damage
//
// Cards lose what they said they had written. Open therefore looks through the
// file before bbolt does (page.go, repair.go): where the newest tree is not
// whole, it goes on with a newer one that the card has forgotten to lead to, or
// takes the last transaction back, and otherwise puts a new file in its place
// with all that can be read. Either way it goes on with a far higher
// run, since it cannot know which were used. What it did is in [Recovery].
// Errors of reading, as opposed to what was read, are returned.
//
// Bits may flip while the file is open. A commit therefore looks at each page
// before bbolt does (sight), and freezes nothing that is not behind what was
// settled. A damaged row is removed and told as lost; other damage is an error,
// as of a commit that fails, and the next start mends the file.
//
// Where a commit fails, nothing is written any more until the file is opened
// anew: what a failed sync leaves, no other sync tells. What it had is sent
// from memory, unless all of it was written but not synced, so that it may be
// on disk; that waits.
//
// # Goroutines
//
// Methods may be called from any goroutine. One goroutine, the committer, owns
// all writing to the files; Close ends it.
package outbox
