// Package deptest holds the rules of the house as tests: who may import whom, what the shim may link, and which calls
// are banned where. Each rule carries its reason, and the failure prints it.
package deptest
