#!/bin/sh
# Lets programs make user namespaces where AppArmor forbids it, as Ubuntu does from 24.04 on: the build's sandbox and an
# emulator's own network need them.  It is for runners that exist for one job; on your own machine decide it yourself.
set -eu
name=kernel.apparmor_restrict_unprivileged_userns
switch=${SWITCH:-/proc/sys/kernel/apparmor_restrict_unprivileged_userns}
[ -e "$switch" ] && [ "$(cat "$switch")" != 0 ] || exit 0
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
as_root sysctl -w "$name=0"
