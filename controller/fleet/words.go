package fleet

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// word turns MODE_MANAGE into "manage": the words that people see are the names of the wire without their prefix.
func word(name, prefix string) string {
	w := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
	if w == "unspecified" {
		return ""
	}
	return w
}

func modeName(m agentv1.Mode) string          { return word(m.String(), "MODE_") }
func formatName(f agentv1.StoreFormat) string { return word(f.String(), "STORE_FORMAT_") }
func stateName(s agentv1.InstallState) string {
	if w := word(s.String(), "INSTALL_STATE_"); w != "" {
		return w
	}
	return "unknown"
}
func portName(k agentv1.PortKind) string       { return word(k.String(), "PORT_KIND_") }
func kindName(k agentv1.MoveKind) string       { return word(k.String(), "MOVE_KIND_") }
func outcomeName(o agentv1.MoveOutcome) string { return word(o.String(), "MOVE_OUTCOME_") }
func verdictName(v agentv1.Verdict) string {
	if w := word(v.String(), "VERDICT_"); w != "" {
		return w
	}
	return "pending"
}

func containsString(all []string, s string) bool { return slices.Contains(all, s) }

func millis(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMilli()
}
