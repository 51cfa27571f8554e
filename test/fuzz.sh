#!/usr/bin/env bash
# Runs every fuzz target of the tree for a short time each: fuzz.sh [TIME]
set -euo pipefail
time=${1:-10s}
found=0
while IFS=: read -r file name; do
  dir=$(dirname "$file")
  found=$((found + 1))
  echo "fuzz $dir $name $time"
  go test "./$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -parallel 2 >/tmp/csm-fuzz.$$ 2>&1 || { cat /tmp/csm-fuzz.$$; rm -f /tmp/csm-fuzz.$$; exit 1; }
done < <(git ls-files '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
rm -f /tmp/csm-fuzz.$$
[ "$found" -gt 0 ] || { echo "no fuzz target found"; exit 1; }
echo "$found fuzz targets held"
