// Package packages tests what operators install: the deb and rpm that `make packages` builds, their units under
// systemd-analyze, and, with CSM_TEST_PACKAGES set (`make test-packages`), their whole life under a real systemd with a
// real Cassandra.
package packages
