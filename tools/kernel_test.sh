#!/bin/sh
# Builds tests/kernels/kernel_*.c with the kernels and runs it: on this machine, as a Haswell (AVX2 only), and one ARM program as the CPUs that have
# the levels neon (Cortex-A53), dotprod (Neoverse-N1) and i8mm (QEMU's max without SVE) and those below. evex: on this machine, which needs AVX512-VNNI,
# with level avxvnni in AVX-512's encoding of the same instructions (csrc/kernels/x86/simd_avxvnni.h).
#   tools/kernel_test.sh [native] [evex] [haswell] [neon] [dotprod] [i8mm] [-- arguments of the test]       default: all but evex
# CC is the native compiler. Exit status: 0 passed, 1 failed, 2 something is not installed.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# As in setup.py, and a file's flags by its suffix.
flags="-std=gnu11 -O3 -g -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-strict-aliasing"
avx2="-mavx2 -mfma -mf16c"
avxvnni="$avx2 -mavxvnni"
avx512vnni="$avx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512"
dotprod=-march=armv8.2-a+dotprod
i8mm=$dotprod+i8mm

need() {        # command, Debian package
    command -v "$1" >/dev/null || { echo "kernel_test: $1 is not installed; hint: apt install $2" >&2; exit 2; }
}

build() {       # compiler, target architecture, name
    mkdir "$dir/$3"
    define=
    [ "$3" = evex ] && define="-DPYLLM_AVXVNNI_EVEX -DPYLLM_NO_AMX" avxvnni=$avx2
    for src in csrc/base/*.c csrc/formats/*.c csrc/kernels/*.c csrc/kernels/*/*.c tests/kernels/kernel_*.c; do
        case "$2:$src" in
            *:csrc/formats/gguf.c) continue ;;
            *:tests/*) extra=-O1 ;;         # GCC 12 for aarch64 dies of vectorizing sums in double
            x86_64:*_avx2.c) extra=$avx2 ;;
            x86_64:*_avxvnni.c) extra=$avxvnni ;;
            x86_64:*_avx512vnni.c) extra=$avx512vnni ;;
            x86_64:*_amx.c) extra="$avx512vnni -mamx-tile -mamx-int8" ;;
            aarch64:*_neon.c) extra= ;;
            aarch64:*_dotprod.c) extra=$dotprod ;;
            aarch64:*_i8mm.c) extra=$i8mm ;;
            *_avx2.c | *_avxvnni.c | *_avx512vnni.c | *_amx.c | *_neon.c | *_dotprod.c | *_i8mm.c) continue ;;
            *) extra= ;;
        esac
        echo "$1 $flags $define $extra -c $src -o $dir/$3/$(echo "$src" | tr / _).o"
    done | xargs -P 2 -I COMMAND sh -c COMMAND || exit 1
    $1 -o "$dir/$3/kernel_test" "$dir/$3"/*.o -pthread -lm || exit 1
}

arch() { "$1" -dumpmachine | sed 's/^i[3-6]86.*/x86/; s/^amd64/x86_64/; s/^arm64/aarch64/; s/-.*//'; }

run() {         # expected levels ("" for any that begin with ref), command...
    expected=$1
    shift
    status=0
    "$@" >"$dir/out" 2>&1 || status=$?
    cat "$dir/out"
    levels=$(sed -n 's/^levels: //p' "$dir/out")
    case "$levels" in
        ref*) [ -z "$expected" ] || [ "$levels" = "$expected" ] || { echo "kernel_test: levels are '$levels', expected '$expected'" >&2; exit 1; } ;;
        *) echo "kernel_test: the test lists no levels" >&2; exit 1 ;;
    esac
    [ $status -eq 0 ] || exit 1
}

# The two emulators compute the same cases: the reference must give the same bits with x86's software fma and ARM's own.
same_results() {
    sum=$(sed -n 's/^checksum.*: //p' "$dir/out")
    [ "${sums:-$sum}" = "$sum" ] || { echo "kernel_test: the reference's results differ from the other CPU's: $sums" >&2; exit 1; }
    sums=$sum
}

what= sums=
while [ $# -gt 0 ] && [ "$1" != -- ]; do what="$what $1"; shift; done
[ $# -gt 0 ] && shift
for w in ${what:-native haswell neon dotprod i8mm}; do
    echo "== $w"
    case $w in
        native)
            need "${CC:-cc}" gcc
            [ -d "$dir/native" ] || build "${CC:-cc}" "$(arch "${CC:-cc}")" native
            run "" "$dir/native/kernel_test" "$@" ;;
        evex)
            need "${CC:-cc}" gcc
            build "${CC:-cc}" x86_64 evex
            run "ref avx2 avxvnni avx512vnni" "$dir/evex/kernel_test" "$@" ;;
        haswell)
            need "${CC:-cc}" gcc
            need qemu-x86_64 qemu-user
            [ -d "$dir/native" ] || build "${CC:-cc}" x86_64 native
            # QEMU 7.2 reads 16 bytes for the 4 of a scalar vfmadd: reads across a page border are left to the native run.
            run "ref avx2" qemu-x86_64 -cpu Haswell "$dir/native/kernel_test" --repeat 1 --gap 64 "$@"
            same_results ;;
        neon | dotprod | i8mm)
            need aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
            need qemu-aarch64 qemu-user
            [ -d "$dir/aarch64" ] || build aarch64-linux-gnu-gcc aarch64 aarch64
            case $w in
                neon) cpu=cortex-a53 levels="ref neon" ;;
                dotprod) cpu=neoverse-n1 levels="ref neon dotprod" ;;
                i8mm) cpu=max,sve=off levels="ref neon dotprod i8mm" ;;
            esac
            run "$levels" qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $cpu "$dir/aarch64/kernel_test" --repeat 1 "$@"
            same_results ;;
        *) echo "kernel_test: unknown run '$w'" >&2; exit 2 ;;
    esac
done
