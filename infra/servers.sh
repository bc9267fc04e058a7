#!/usr/bin/env bash
# Install the servers of the tests: Ceph's S3 gateway, Prometheus, Chromium and Java (Debian packages), Azurite (npm,
# from its lock). If an installation fails, the tests that need it are skipped with a message; this script never fails a
# build.
set -uo pipefail
cd "$(dirname "$0")/../tests/servers" || exit

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --non-interactive "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || { echo "apt-get not found: install $* manually" >&2; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get update -qq && as_root apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

download() { apt-get download -qq -o APT::Sandbox::User=root "$1"; }

unpack() {
    command -v apt-get >/dev/null || { echo "apt-get not found: install $1 manually" >&2; return 1; }
    local unpacked="$PWD/unpacked" folder failed
    folder=$(mktemp -d)
    (
        cd "$folder" || exit
        download "$1" 2>/dev/null || { as_root apt-get update -qq && download "$1"; } || exit
        dpkg-deb --extract "$1"_*.deb "$unpacked"
    )
    failed=$?
    rm -rf "$folder"
    return $failed
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
if ! command -v prometheus >/dev/null && [ ! -x unpacked/usr/bin/prometheus ]; then
    # Unpacked, not installed: the package would start a service, and depends on a web console that no test uses.
    unpack prometheus || echo "Prometheus is not unpacked: its tests will be skipped" >&2
fi
if ! command -v java >/dev/null; then
    apt_install openjdk-17-jre-headless || echo "Java is not installed: the tests with Spark will be skipped" >&2
fi
exit 0
