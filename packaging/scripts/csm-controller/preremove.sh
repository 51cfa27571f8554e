#!/bin/sh
# deb: remove, or upgrade VERSION; rpm: 0 when the last one goes.
set -e
case "${1:-}" in remove | 0) ;; *) exit 0 ;; esac
[ "$1" != 0 ] || systemctl --no-reload disable csm-controller.service || :
[ -d /run/systemd/system ] || exit 0
systemctl stop csm-controller.service || :
