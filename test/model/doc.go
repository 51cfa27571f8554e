// Package model checks, by exhaustive search, that an install and a rotation never cut a ring.
//
// The two models, install.pml and rotation.pml, are written in Promela and searched by spin. The tests demand that nothing is
// found with all gates, and that an outage is found when any one of them is taken out. README.md explains both from the beginning.
package model
