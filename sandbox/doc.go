// Package sandbox is the life of pods and their containers. It owns all state about them.
//
// A pod or container is a directory with one record under the root directory, and live things (namespaces, mounts,
// cgroups, a shim) under names that follow from its id. Three sentences govern the code:
//
//   - Intent, effect, fact: write the record, act, write that it happened.
//   - Derive, don't remember: every handle is a function of the id, so undo needs no memory.
//   - One teardown: failed create, Stop, Remove and recovery run the same idempotent steps, which go on past failures
//     and delete the record last.
//
// The state of an object is derived from the facts in its record:
//
//	pod:        (intent) -> READY -> NOTREADY -> gone                never back to READY
//	container:  (intent) -> CREATED -> RUNNING -> EXITED -> gone     UNKNOWN: the shim does not answer
//
// Operations that change one object take turns (type turn). Lists and statuses read immutable records and wait for
// nobody.
package sandbox
