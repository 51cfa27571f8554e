#!/bin/sh
# deb: configure [version before]; rpm: 1 at the first installation, more at an upgrade.
set -e
case "${1:-}" in
  configure) [ -n "${2:-}" ] && first=no || first=yes ;;
  1) first=yes ;;
  abort-*) exit 0 ;;
  *) first=no ;;
esac

systemd-sysusers csm-controller.conf
[ -e /var/lib/csm ] || install -d -o csm -g csm -m 0700 /var/lib/csm
# Where backups go unless the schedule says otherwise. A disk that is mounted there keeps its owner and mode.
[ -e /var/backups/csm ] || { install -d -m 0755 /var/backups && install -d -o csm -g csm -m 0700 /var/backups/csm; }

[ "$first" = no ] || systemctl --no-reload preset csm-controller.service || :
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# A quorum is upgraded one controller at a time, and only an operator sees whether the others are healthy.
if systemctl --quiet is-active csm-controller.service; then
  echo "csm-controller: the old program runs on. When \`csm status\` shows the other controllers healthy: systemctl restart csm-controller"
elif [ -e /var/lib/csm/node.json ]; then
  echo "csm-controller: not started. When you want it: systemctl start csm-controller"
elif [ "$first" = yes ]; then
  echo "csm-controller: not started, for it belongs to no system. Fill /etc/csm/controller.yaml, then as its user:"
  echo "csm-controller:   cd /var/lib/csm && runuser -u csm -- csm-controller init     (or join), then: systemctl start csm-controller"
fi
