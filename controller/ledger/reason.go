package ledger

import (
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Reason is a CRLReason (RFC 5280, 5.3.1).
type Reason uint32

// The reasons that a revocation may give. certificateHold (6) is not offered: a hold that is lifted leaves no trace in
// the next list, and nobody who read the list in between can tell.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
)

var reasons = map[Reason]string{Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded", CessationOfOperation: "cessationOfOperation",
	PrivilegeWithdrawn: "privilegeWithdrawn"}

// String is the name in RFC 5280.
func (r Reason) String() string { return reasons[r] }

// Check refuses a number that is not one of the reasons above.
func (r Reason) Check() error {
	if _, ok := reasons[r]; !ok {
		return fault.New(fault.Invalid, "bad-reason", "%d is not a reason to revoke for", uint32(r)).Do("use one of %s", reasonNames())
	}
	return nil
}

func reasonNames() string {
	var out []string
	for r := Unspecified; r <= PrivilegeWithdrawn; r++ {
		if n, ok := reasons[r]; ok {
			out = append(out, n)
		}
	}
	return strings.Join(out, ", ")
}

// ParseReason reads a name of RFC 5280 without regard to case, dashes and underscores; empty is unspecified.
func ParseReason(s string) (Reason, error) {
	plain := strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s))
	if plain == "" {
		return Unspecified, nil
	}
	for r, n := range reasons {
		if strings.ToLower(n) == plain {
			return r, nil
		}
	}
	return 0, fault.New(fault.Invalid, "bad-reason", "%.60q is not a reason to revoke for", s).Do("use one of %s", reasonNames())
}
