package service

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// unit is the systemd unit of a host without packages: one file, so the agent starts nodetool's helper itself, and the
// unit must let it start programs and a JVM write code. All else is closed as in systemd/csm-agent.service.
func (o Options) unit() (string, error) {
	var folders []string
	for _, f := range writable(o.Config) {
		folders = append(folders, "-"+f)
	}
	words := append([]string{o.Program}, o.arguments()...)
	for _, w := range append(append([]string{o.User}, words...), folders...) {
		if strings.ContainsAny(w, "\"\\\n%{}$") {
			return "", fault.New(fault.Invalid, "bad-path", "%q cannot stand in a unit of systemd", w).Do("use paths of letters, digits, dots, dashes and spaces")
		}
	}
	user := ""
	if o.User != "" {
		user = "User=" + o.User + "\n"
	}
	return fmt.Sprintf(unitText, filepath.Join(o.Config.StateDir, "*", "identity.json"), quoted(words), user, quoted(folders)), nil
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = w
		if strings.Contains(w, " ") {
			q[i] = `"` + w + `"`
		}
	}
	return strings.Join(q, " ")
}

const unitText = `# Written by csm-agent service install.
[Unit]
Description=` + description + `
Wants=network-online.target
After=network-online.target
ConditionPathExistsGlob=%s

[Service]
Type=notify
ExecStart=%s
%sUMask=0077
ReadWritePaths=%s
Restart=on-failure
RestartSec=5s
RestartPreventExitStatus=2
TimeoutStopSec=45s
OOMScoreAdjust=500
CPUWeight=20
MemoryMax=512M
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
`
