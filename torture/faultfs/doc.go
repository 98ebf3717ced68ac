// Package faultfs is a disk that fails on demand, as a file system (FUSE) that
// programs can work on. A [Disk] keeps everything in memory, each file twice:
// as programs see it, and as it would be found after a power cut.
//
// What stands between the two are the writes since the last fsync. A power cut
// keeps any of them, or parts of them, and loses the others. What fsync
// confirmed is safe, unless the disk lies. Names are as in POSIX: a new, moved
// or deleted name is safe when the directory was synced.
package faultfs
