#!/bin/sh
# Runs one verification in any CI.  It opens /dev/kvm if it can, installs what is missing, runs
# `./inv verify` and puts the report and the logs into one folder.  Its exit code is verify's.
#
#   RELEASE   FreeBSD release (15.1)
#   BACKEND   auto, kvm, bochs, tcg or kvm-in-bochs (auto)
#   SERIES    a folder of patches, one patch or a mailbox; empty for this project's own
#   BASE      a commit: the commits after it in REPO's checkout are the series
#   REPO      the checkout that BASE belongs to (the current folder)
#   BUNDLE    a file of `./inv image.bundle`, for runners without a network
#   CPU_VENDOR  intel or amd: the processor that Bochs emulates (intel)
#   STOCK     1: run the checks on the stock module, where the patch's must fail
#   OPTIONS   more options of `./inv verify`, separated by blanks
#   OUT       where the report and the logs go (vmm-report in the current folder)
#   OPTIONAL  1: if this machine cannot offer the backend, say so and exit 0
#
# HARNESS_CACHE holds images, builds and ccache's files between runs; let the CI cache that folder.
set -eu

here=$(pwd)
top=$(cd "$(dirname "$0")/.." && pwd -P)
release=${RELEASE:-15.1}
backend=${BACKEND:-auto}
repo=${REPO:-$here}
out=${OUT:-$here/vmm-report}
case $out in /*) ;; *) out=$here/$out ;; esac
mkdir -p "$out"
# What `./inv matrix --merge` knows of a job that leaves no report.
printf 'release=%s\nbackend=%s\ncpu_vendor=%s\nstock=%s\n' \
    "$release" "$backend" "${CPU_VENDOR:-}" "${STOCK:-0}" >"$out/job.txt"
HARNESS_RUNS=${HARNESS_RUNS:-$out/runs}
export HARNESS_RUNS

say() { printf 'ci: %s\n' "$*" >&2; }

# A hosted runner's user may not use /dev/kvm, but may take that right with sudo.
if [ -e /dev/kvm ] && [ ! -w /dev/kvm ] && sudo -n true 2>/dev/null; then
	"$top/ci/kvm.sh" || say "/dev/kvm stays closed"
fi

# When the script ends before there is a verdict, verdict.txt gives the reason.
stop() {
	say "$2"
	echo "verdict: no verdict: $2" >"$out/verdict.txt"
	exit "$1"
}

set --
if [ -n "${BASE:-}" ]; then
	# git format-patch depends on the user's settings and does not notice a shallow clone.
	rm -rf "$out/series"
	code=0
	"$top/inv" patch.commits "$repo" --base "$BASE" --out "$out/series" 2>"$out/commits.log" || code=$?
	cat "$out/commits.log" >&2
	if [ "$code" != 0 ]; then
		reason=$(sed -n 's/^error: //p' "$out/commits.log" | tail -n 1)
		stop "$code" "${reason:-the commits after $BASE could not be read}"
	fi
	SERIES=$out/series
fi
if [ -n "${SERIES:-}" ]; then
	case $SERIES in
	*://*) stop 2 "$SERIES: addresses are not fetched; fetch it (curl -fLO ADDRESS) and give the file" ;;
	/*) ;;
	*) SERIES=$here/$SERIES ;;
	esac
	[ -e "$SERIES" ] || stop 2 "$SERIES: there is no such series"
	set -- --series "$SERIES"
fi

cd "$top"
./inv setup || stop $? "the setup failed; the log says why"
./inv doctor || say "the doctor would not verify here as it is; see above"
if [ -n "${BUNDLE:-}" ]; then
	./inv image.info --release "$release" >/dev/null 2>&1 ||
	    ./inv image.import --release "$release" --bundle "$BUNDLE" ||
	    stop $? "the bundle $BUNDLE could not be imported; the log says why"
	set -- "$@" --offline
fi
if [ "${OPTIONAL:-0}" = 1 ]; then
	code=0
	./inv probe --backend "$backend" ${CPU_VENDOR:+--cpu-vendor "$CPU_VENDOR"} || code=$?
	if [ "$code" = 3 ]; then
		say "skipped: $backend is not to be had on this machine (see above)"
		echo "skipped: no $backend on this machine" >"$out/verdict.txt"
		exit 0
	fi
fi

[ -z "${CPU_VENDOR:-}" ] || set -- "$@" --cpu-vendor "$CPU_VENDOR"
[ "${STOCK:-0}" != 1 ] || set -- "$@" --stock
code=0
# shellcheck disable=SC2086 # OPTIONS is a list of words
./inv verify --release "$release" --backend "$backend" "$@" ${OPTIONS:-} >"$out/verdict.txt" || code=$?
grep -q '^verdict:' "$out/verdict.txt" ||
    echo "verdict: no verdict: verify ended with exit code $code; the log says why" >>"$out/verdict.txt"
cat "$out/verdict.txt"
# Remove what a guest wrote, and links to the image and snapshots, which an upload would follow.
[ ! -d "$HARNESS_RUNS/latest" ] ||
    find "$HARNESS_RUNS/latest/" \( -name 'overlay.*' -o -type l \) -exec rm -f {} +
say "exit code $code; the report and the consoles are in $out"
exit "$code"
