#!/bin/sh
# Cross-builds pyllm for aarch64, or takes an unpacked wheel, and runs its tests in an aarch64 Python under qemu-user.
#   tools/arm64_test.sh [--cpu cortex-a53 | neoverse-n1 | max,sve=off] [--unpacked FOLDER] [arguments of pytest | --python arguments of Python]
# The CPUs have the levels up to neon (the default), dotprod and i8mm. Without arguments: the levels, and the tiny models bit for bit.
# Needs Debian, qemu-user, without a wheel gcc-aarch64-linux-gnu, and for $PYTHON (default .venv/bin/python) the packages of a build: setuptools, cffi.
# The aarch64 Python (Debian's, unpacked, not installed) and its wheels are kept in build/arm64; remove that folder to fetch them again.
# Tests that start a child Python cannot run here: the kernel does not know aarch64 programs.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
home=$PWD/build/arm64
need() {
    command -v "$1" >/dev/null || { echo "arm64_test: $1 is not installed; hint: apt install qemu-user gcc-aarch64-linux-gnu" >&2; exit 2; }
}
need qemu-aarch64
need apt-get
need dpkg

fetch_python() {    # into $home/root, with apt's state in a private folder
    mkdir -p "$home/apt/lists/partial" "$home/apt/archives/partial" "$home/root.new"
    : >"$home/apt/status"
    set -- -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$home/apt/lists" \
        -o Dir::State::status="$home/apt/status" -o Dir::Cache::archives="$home/apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    apt-get "$@" update >"$home/apt/log"
    apt-get "$@" -y -d --no-install-recommends install python3 libstdc++6 libffi8 musl >>"$home/apt/log"
    for package in "$home"/apt/archives/*.deb; do dpkg -x "$package" "$home/root.new"; done
    mv "$home/root.new" "$home/root"
}

fetch_wheels() {    # what pyllm and these tests import, into $home/site
    version=$(basename "$home"/root/usr/bin/python3.[0-9]*)
    version=${version#python}
    tags=
    for glibc in 2_17 2_27 2_28; do tags="$tags --platform manylinux_${glibc}_aarch64"; done
    # shellcheck disable=SC2086
    "$python" -m pip download -q -d "$home/wheels" --only-binary=:all: --implementation cp --python-version "$version" \
        --abi "cp$(echo "$version" | tr -d .)" --abi abi3 --abi none $tags --platform manylinux2014_aarch64 \
        cffi numpy gguf sentencepiece minijinja pytest hypothesis tokenizers
    "$python" -c 'import glob, sys, zipfile
for wheel in glob.glob(sys.argv[1] + "/*.whl"): zipfile.ZipFile(wheel).extractall(sys.argv[2])' "$home/wheels" "$home/site.new"
    mv "$home/site.new" "$home/site"
}

cpu=cortex-a53 wheel='' module="-m pytest -p no:cacheprovider"
while :; do
    case ${1:-} in
        --cpu) cpu=$2; shift 2 ;;
        --unpacked) wheel=$(realpath "$2"); shift 2 ;;
        --python) module=''; shift; break ;;
        *) break ;;
    esac
done
case $cpu in
    cortex-a53) levels="ref neon" ;;
    neoverse-n1) levels="ref neon dotprod" ;;
    max,sve=off) levels="ref neon dotprod i8mm" ;;
    *) echo "arm64_test: which levels has $cpu? hint: cortex-a53, neoverse-n1 or max,sve=off" >&2; exit 2 ;;
esac
[ -d "$home/root" ] || fetch_python
[ -d "$home/site" ] || fetch_wheels
if [ -n "$wheel" ]; then
    lib=$wheel
else
    lib=$home/lib
    need aarch64-linux-gnu-gcc
    CC=aarch64-linux-gnu-gcc "$python" setup.py -q build --build-base "$home/build" --build-lib "$lib"
fi
[ $# -gt 0 ] || set -- tests/unit/test_kernels.py tests/unit/test_bit_identity.py -k "tiny or what_the_cpu_has or own_kernels"
# OPENBLAS_CORETYPE may name a CPU of this machine; PYTHONSAFEPATH: the checkout's pyllm has no library for ARM.
unset OPENBLAS_CORETYPE
# shellcheck disable=SC2086
PYTHONSAFEPATH=1 PYTHONPATH="$lib:$home/site" PYLLM_TEST_LEVELS=$levels exec qemu-aarch64 -L "$home/root" -cpu $cpu \
    "$home"/root/usr/bin/python3.[0-9]* $module "$@"
