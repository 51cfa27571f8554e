#!/usr/bin/env bash
# Installs what a Debian-like machine lacks for `make run` and `make test`, or names the command that does.
# Go itself must be there already, because Debian's own is too old: the message says where to start.
set -euo pipefail

need_go="1.26"
missing=()

say() { printf '%s\n' "$*" >&2; }

if ! command -v go >/dev/null 2>&1; then
  say "Go $need_go or newer is missing. Install it from your distribution's backports or from go.dev/dl, then run this again."
  exit 1
fi
have_go=$(go env GOVERSION | sed 's/^go//')
if [ "$(printf '%s\n%s\n' "$need_go" "$have_go" | sort -V | head -n 1)" != "$need_go" ]; then
  say "Go $have_go is too old: $need_go or newer is needed."
  exit 1
fi

java_home() {
  local d
  for d in "${JAVA_HOME:-}" /usr/lib/jvm/java-17-openjdk-* /usr/lib/jvm/*17*; do
    [ -n "$d" ] && [ -x "$d/bin/java" ] && [ -x "$d/bin/keytool" ] && "$d/bin/java" -version 2>&1 | grep -q '"17\.' && { echo "$d"; return; }
  done
  return 1
}
java_home >/dev/null || missing+=(openjdk-17-jdk-headless)
command -v mvn >/dev/null 2>&1 || missing+=(maven)
command -v strace >/dev/null 2>&1 || missing+=(strace)
command -v openssl >/dev/null 2>&1 || missing+=(openssl)
command -v rpm >/dev/null 2>&1 || missing+=(rpm)
command -v systemd-analyze >/dev/null 2>&1 || missing+=(systemd)
command -v git >/dev/null 2>&1 || missing+=(git)
command -v spin >/dev/null 2>&1 || missing+=(spin)
command -v gcc >/dev/null 2>&1 || missing+=(gcc)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
command -v promtool >/dev/null 2>&1 || missing+=(prometheus)

[ ${#missing[@]} -eq 0 ] && exit 0

cmd="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  say "Missing: ${missing[*]}. Install with:"
  say "  sudo apt-get update && sudo $cmd"
  exit 1
fi
say "Installing ${missing[*]} ..."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
$cmd >&2
