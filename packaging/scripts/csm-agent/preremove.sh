#!/bin/sh
# deb: remove, or upgrade VERSION; rpm: 0 when the last one goes. An upgrade goes on with the old program until the new
# one is in place.
set -e
case "${1:-}" in remove | 0) ;; *) exit 0 ;; esac
[ "$1" != 0 ] || systemctl --no-reload disable csm-agent.service csm-agent-reload.socket csm-agent-links.socket || :
[ -d /run/systemd/system ] || exit 0
systemctl stop csm-agent.service csm-agent-reload.socket csm-agent-links.socket || :
# A nodetool that the agent did not wait for.
systemctl stop 'csm-agent-reload@*.service' 'csm-agent-links@*.service' || :
