// Package absence lets a whole system come back after 400 days, with real programs. The system is made in the past by programs
// built with a shifted clock (test/clock); what comes back on today's clock are the programs as they are shipped.
package absence
