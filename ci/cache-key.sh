#!/bin/sh
# The digest that a CI's cache of the prepared image of a release goes by: what FreeBSD publishes,
# and all that preparation does.
set -eu
cd "$(dirname "$0")/.."
release=${1:-15.1}
cat "images/freebsd-$release.toml" images/prepare.sh harness/image/prepare.py | sha256sum | cut -c1-16
