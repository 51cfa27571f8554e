#!/usr/bin/env bash
# The version of packages, from git: v1.2.3 is 1.2.3; v1.2.3-rc1 is 1.2.3~rc1, which sorts before it; what comes after a
# tag is 1.2.3+5.gabc. Without a tag: 0.0.0~12.gabc, 12 being the number of commits.
set -euo pipefail
cd "$(dirname "$0")/.."
tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
commit=$(git rev-parse --short=10 HEAD)
if [ -z "$tag" ]; then
  echo "0.0.0~$(git rev-list --count HEAD).g$commit"
  exit
fi
base=${tag#v}
after=$(git rev-list --count "$tag..HEAD")
[ "$after" = 0 ] && echo "${base/-/\~}" || echo "${base/-/\~}+$after.g$commit"
