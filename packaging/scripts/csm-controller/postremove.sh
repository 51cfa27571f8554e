#!/bin/sh
# deb: remove, purge, upgrade, …; rpm: 0 when the last one went. Only dpkg knows purge: state survives everything else.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
case "${1:-}" in
  purge)
    rm -f /etc/systemd/system/multi-user.target.wants/csm-controller.service
    rm -rf /var/lib/csm
    echo "csm-controller: /var/lib/csm is gone, with this controller's copy of the state and of the sealed keys. The other controllers,"
    echo "csm-controller: backups and recovery share have theirs. If it was a member: csm system remove NAME"
    ;;
  remove | 0)
    if [ -e /var/lib/csm/node.json ]; then
      echo "csm-controller: the state and the sealed keys stay in /var/lib/csm. If it is not to come back: csm system remove NAME"
    fi
    ;;
esac
