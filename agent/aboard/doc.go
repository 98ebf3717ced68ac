// Package aboard is how devices come aboard: it keeps those that were heard
// and are not configured, and what was decided of them.
//
// A driver shows a stranger that a firmware profile knows, as one of its
// messages tells of it: a [Candidate]. The [Registry] makes it pending, until
// somebody admits or refuses it. To admit it is to write a file into devices.d,
// which is read like the config, and which people may edit. What was refused is
// remembered, and is not shown again.
//
// Everything that a device says of itself is hostile: it is cleaned, cut, and
// bounded in number before it is kept.
package aboard
