#!/usr/bin/env bash
# Install what the tests start: Ceph's S3 gateway and Chromium (Debian packages), Azurite (npm, from its lock).
# Where that can't be done the tests that need them say so and are skipped; this never fails a build.
set -uo pipefail
cd "$(dirname "$0")/../tests/servers"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --non-interactive "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || { echo "no apt-get here: install $* by hand" >&2; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get update -qq && as_root apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

if ! command -v radosgw >/dev/null; then
    apt_install radosgw ceph-mon ceph-osd ceph-common || echo "Ceph is not installed: its tests will be skipped" >&2
fi
if ! command -v chromium >/dev/null; then
    apt_install chromium || echo "Chromium is not installed: the tests of the report's page will be skipped" >&2
fi
if [ ! -x node_modules/.bin/azurite-blob ]; then
    command -v npm >/dev/null || apt_install nodejs npm
    npm ci --omit=dev --ignore-scripts --no-fund --no-audit --loglevel=error \
        || echo "Azurite is not installed: its tests will be skipped" >&2
fi
exit 0
