#!/usr/bin/env bash
# Builds deb and rpm of the three programs into build/packages. BINARIES holds programs for PACKAGE_ARCH; HOST_BINARIES
# holds the same programs for this machine, which write their own man pages and completions.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BINARIES:?}" "${HOST_BINARIES:?}" "${PACKAGE_ARCH:?}" "${PACKAGE_VERSION:?}" "${NFPM:?}"
export PACKAGE_ARCH PACKAGE_VERSION
# Two builds of one commit give the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

declare -A rpm_arch=([amd64]=x86_64 [arm64]=aarch64)
out=build/packages
to=${PACKAGE_OUT:-$out}
mkdir -p "$to"
find "$to" -maxdepth 1 \( -name "*_$PACKAGE_ARCH.deb" -o -name "*.${rpm_arch[$PACKAGE_ARCH]}.rpm" \) -delete
rm -rf "$out/stage"
mkdir -p "$out/stage/bin" "$out/stage/completion" "$out/stage/man"
for program in csm-controller csm-agent csm; do
  install -m 0755 "$BINARIES/$program" "$out/stage/bin/$program"
  "$HOST_BINARIES/$program" manual "$out/stage/man/$program"
  gzip -9n "$out/stage/man/$program"/*.1
  for shell in bash zsh fish; do
    "$HOST_BINARIES/$program" completion "$shell" >"$out/stage/completion/$program.$shell"
  done
done
# One format beside the other: compressing takes one processor, and most of the time.
(for program in csm-controller csm-agent csm; do "$NFPM" package --config "packaging/nfpm/$program.yaml" --packager deb --target "$to/"; done) &
debs=$!
for program in csm-controller csm-agent csm; do
  "$NFPM" package --config "packaging/nfpm/$program.yaml" --packager rpm --target "$to/"
done
wait "$debs"
rm -rf "$out/stage"
