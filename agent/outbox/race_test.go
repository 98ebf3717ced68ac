//go:build race

package outbox

// raced says that the race detector is at work, which makes all slower by far.
const raced = true
