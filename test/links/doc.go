// Package links proves on a real ring, each node in a network namespace of its own, that connections which live on old certificates are
// found and ended without a query that fails. It runs with CSM_TEST_FULL set (`make test-full`).
package links
