// Package agenttest holds the tests that need both sides: the real agent of a node against the real agents' API, fleet,
// certificate authority and state of a controller, and a Cassandra that is real as far as TLS goes. It exports nothing; it
// is the one place under agent/ that sees packages of the controller.
package agenttest
