#!/bin/sh
# Prints the key under which a CI caches the prepared image of a release.  The key is a digest of
# what FreeBSD publishes and of everything that preparation does.
set -eu
cd "$(dirname "$0")/.."
release=${1:-15.1}
cat "images/freebsd-$release.toml" images/prepare.sh harness/image/prepare.py | sha256sum | cut -c1-16
