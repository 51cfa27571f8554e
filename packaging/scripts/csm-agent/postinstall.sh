#!/bin/sh
# deb: configure [version before]; rpm: 1 at the first installation, more at an upgrade.
set -e
case "${1:-}" in
  configure) [ -n "${2:-}" ] && first=no || first=yes ;;
  1) first=yes ;;
  abort-*) exit 0 ;;
  *) first=no ;;
esac

systemd-sysusers csm-agent.conf
# Only made, never changed: what is there has the owner and mode that the operator gave it.
[ -e /var/lib/csm-agent ] || install -d -o cassandra -g cassandra -m 0700 /var/lib/csm-agent
[ -e /etc/cassandra/tls ] || { install -d -m 0755 /etc/cassandra && install -d -o cassandra -g cassandra -m 0750 /etc/cassandra/tls; }

[ "$first" = no ] || systemctl --no-reload preset csm-agent.service csm-agent-reload.socket csm-agent-links.socket || :
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
do_unit() { if command -v deb-systemd-invoke >/dev/null; then deb-systemd-invoke "$@"; else systemctl "$@"; fi }
for socket in csm-agent-reload.socket csm-agent-links.socket; do
  if systemctl --quiet is-enabled "$socket"; then do_unit start "$socket" || :; fi
done
# The unit's own condition keeps an agent that has not joined from starting.
if systemctl --quiet is-active csm-agent.service; then
  do_unit restart csm-agent.service || :
elif [ "${1:-}" = configure ] || [ "$first" = yes ]; then
  if systemctl --quiet is-enabled csm-agent.service; then do_unit start csm-agent.service || :; fi
fi
if [ "$first" = yes ] && ! ls /var/lib/csm-agent/*/identity.json >/dev/null 2>&1; then
  echo "csm-agent: not started, for it has not joined. Fill /etc/csm/agent.yaml, then: runuser -u cassandra -- csm-agent join && systemctl start csm-agent"
fi
