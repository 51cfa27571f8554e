#!/usr/bin/env bash
# Runs every fuzz target of the tree for a short time each, two at a time: fuzz.sh [TIME] [all]
#
# What coverage guides is compiled a second time, with all that it imports. Packages that import SQLite take minutes by
# that, so their targets are guided only with `all`; without it they mutate their seeds blindly, in the programs that
# `make test` compiles anyway.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
guided=${2:-}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

# fuzz runs one target of a compiled package and fails when an input was found that breaks it.
fuzz() { # FOLDER PROGRAM NAME
  local log="$work/$3.$RANDOM.log"
  if ! (cd "$1" && "$2" -test.run '^$' -test.fuzz "^$3\$" -test.fuzztime "$time" -test.fuzzminimizetime 10x -test.fuzzcachedir "$work/inputs/$1" -test.parallel 1) >"$log" 2>&1; then
    # The toolchain may report its own time limit as a failure of the target; a real finding leaves an input behind.
    if ! grep -q 'context deadline exceeded' "$log" || grep -qE 'Failing input|panic' "$log"; then
      cat "$log"
      return 1
    fi
  fi
  sed -n "s#^fuzz: elapsed#fuzz $1 $3#p" "$log" | tail -n 1
}

running=()
# settle waits for the oldest target when as many run as are let.
settle() { # MOST
  while [ ${#running[@]} -gt "$1" ]; do
    wait "${running[0]}"
    running=("${running[@]:1}")
  done
}

found=0
targets=$(git ls-files '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
for folder in $(sed 's#/[^/]*$##' <<<"$targets" | sort -u); do
  program="$work/$(tr / - <<<"$folder").test"
  flags=(-fuzz .)
  if [ "$guided" != all ] && go list -deps -test "./$folder" | grep -q '^modernc.org/sqlite$'; then
    flags=()
  fi
  go test -vet=off -c "${flags[@]}" -o "$program" "./$folder"
  for name in $(grep "^$folder/[^/]*:" <<<"$targets" | sed 's/.*://'); do
    settle 1
    fuzz "$folder" "$program" "$name" &
    running+=($!)
    found=$((found + 1))
  done
done
settle 0
[ "$found" -gt 0 ] || { echo "no fuzz target found"; exit 1; }
echo "$found fuzz targets held"
