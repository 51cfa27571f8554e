#!/bin/sh
# deb: remove, purge, upgrade, …; rpm: 0 when the last one went. Only dpkg knows purge: state survives everything else.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
case "${1:-}" in
  purge)
    rm -f /etc/systemd/system/multi-user.target.wants/csm-agent.service /etc/systemd/system/sockets.target.wants/csm-agent-reload.socket /etc/systemd/system/sockets.target.wants/csm-agent-links.socket
    rm -rf /var/lib/csm-agent
    echo "csm-agent: its identity and journal in /var/lib/csm-agent are gone. Cassandra's keystores and truststores, in /etc/cassandra/tls and"
    echo "csm-agent: wherever cassandra.yaml names them, are left as they are: they hold the keys that Cassandra serves with."
    echo "csm-agent: /etc/csm/join.token and /etc/csm/HOLD, if there, are yours to remove. To come back, the node needs a new token."
    ;;
  remove | 0)
    if [ -d /var/lib/csm-agent ]; then
      echo "csm-agent: its identity and journal stay in /var/lib/csm-agent, Cassandra's stores where they are."
    fi
    ;;
esac
