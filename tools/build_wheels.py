#!/usr/bin/env python3
"""Builds a wheel for every platform on this machine, and checks what is in it.

    tools/build_wheels.py [-o dist] [--try] [PLATFORM...]       default: all platforms of TARGETS

Compiles with zig cc, a C compiler for all of them out of one package of the index: pip install ziglang lief setuptools wheel cffi.
One wheel serves every Python from the lowest that pyproject.toml names. Checked of each: its size, its tags and files, the symbols that
its library exports (those of csrc/pyllm.h and no other), the oldest system that it asks for, and the libraries that it loads. --try runs
them, too, as far as that is possible here: tools/try_wheels.py. Exit status: 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import lief
from try_wheels import api, try_all, zig

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 2_500_000
MACOS, WINDOWS = "libSystem.B.dylib", re.compile(r"kernel32\.dll|api-ms-win-crt-\w+-l1-1-0\.dll", re.I)
BY_LINKER = {"__dso_handle", "_mh_dylib_header", "_CRT_INIT", "__mingw_module_is_dll", "atexit"}  # of every library for macOS, Windows
GLIBC, MUSL = re.compile(r"lib(c|m|pthread)\.so\.6|libpthread\.so\.0|ld-linux-(x86-64\.so\.2|aarch64\.so\.1)"), re.compile(r"libc\.so")


@dataclass(frozen=True)
class Target:
    """A platform as pip names it, and as zig does; the library's name in the wheel; the libraries that it may load."""

    tag: str
    zig: str
    library: str
    loads: re.Pattern[str]
    oldest: tuple[int, ...] = ()  # glibc, macOS or Windows version that the library may ask for

    @property
    def name(self) -> str:
        return self.tag.split(".")[0]


TARGETS = (
    Target("manylinux_2_17_x86_64.manylinux2014_x86_64", "x86_64-linux-gnu.2.17", "libpyllm.so", GLIBC, (2, 17)),
    Target("manylinux_2_17_aarch64.manylinux2014_aarch64", "aarch64-linux-gnu.2.17", "libpyllm.so", GLIBC, (2, 17)),
    Target("musllinux_1_2_x86_64", "x86_64-linux-musl", "libpyllm.so", MUSL),
    Target("musllinux_1_2_aarch64", "aarch64-linux-musl", "libpyllm.so", MUSL),
    Target("macosx_11_0_arm64", "aarch64-macos.11.0", "libpyllm.dylib", re.compile(re.escape(MACOS)), (11, 0)),
    Target("macosx_10_13_x86_64", "x86_64-macos.10.13", "libpyllm.dylib", re.compile(re.escape(MACOS)), (10, 13)),
    Target("win_amd64", "x86_64-windows-gnu", "pyllm.dll", WINDOWS, (10, 0)),
    Target("win_arm64", "aarch64-windows-gnu", "pyllm.dll", WINDOWS, (10, 0)),
)


def build(target: Target, dist: Path) -> Path:
    flags = {"pyllm.dll": "-s", "libpyllm.dylib": "-s -Wl,-install_name,@rpath/libpyllm.dylib"}.get(
        target.library, "-s -Wl,-soname,libpyllm.so"
    )
    env = os.environ | {
        "CC": f"{zig()} cc -target {target.zig}",
        "PYLLM_PLAT": target.tag,
        "PYLLM_CFLAGS": "-Werror",
        "PYLLM_LDFLAGS": flags,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = ["egg_info", "--egg-base", folder, "build", "--build-base", folder, "--build-lib", f"{folder}/lib"]
        command = [sys.executable, "setup.py", "-q", *base, "bdist_wheel", "--bdist-dir", f"{folder}/bdist", "-d", folder]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode or "left out" in done.stderr:
            raise SystemExit(f"{target.name}: the build failed\n{done.stdout}{done.stderr}")
        (wheel,) = Path(folder).glob("*.whl")
        dist.mkdir(parents=True, exist_ok=True)
        return Path(wheel.replace(dist / wheel.name)) if wheel.stat().st_dev == dist.stat().st_dev else copy(wheel, dist / wheel.name)


def copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


# ---- what must hold ----


def newest(versions: Iterator[str]) -> tuple[int, ...]:
    return max((tuple(map(int, v.split("_", 1)[1].split("."))) for v in versions if re.fullmatch(r"GLIBC_[\d.]+", v)), default=(0,))


def describe(library: lief.ELF.Binary | lief.MachO.Binary | lief.PE.Binary) -> tuple[set[str], list[str], tuple[int, ...]]:
    """What a library exports, which libraries it loads, and the oldest system that it asks for."""
    if isinstance(library, lief.ELF.Binary):
        exported = {str(s.name) for s in library.exported_symbols}
        return (
            exported,
            [str(n) for n in library.libraries],
            newest(str(aux.name) for need in library.symbols_version_requirement for aux in need.get_auxiliary_symbols()),
        )
    if isinstance(library, lief.MachO.Binary):
        version = library.build_version.minos if library.has_build_version else library.version_min.version
        exported = {str(s.name).removeprefix("_") for s in library.exported_symbols}
        return (
            exported - BY_LINKER,
            [Path(str(lib.name)).name for lib in library.libraries if lib.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB],
            tuple(version[:2]),
        )
    header = library.optional_header
    return (
        {str(e.name) for e in library.get_export().entries} - BY_LINKER,
        [str(i.name) for i in library.imports],
        (header.major_subsystem_version, header.minor_subsystem_version),
    )


def problems(target: Target, wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel."""
    if wheel.stat().st_size > MAX_BYTES:
        yield f"it has {wheel.stat().st_size} bytes, more than {MAX_BYTES}"
    if not wheel.name.endswith(f"-py3-none-{target.tag}.whl"):
        yield f"it is named {wheel.name}"
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        native = [n for n in names if not n.endswith((".py", ".typed", ".html", ".js", ".css")) and ".dist-info/" not in n]
        if native != [f"pyllm/{target.library}"]:
            yield f"its native files are {native}"
            return
        (tags,) = (z.read(n).decode() for n in names if n.endswith(".dist-info/WHEEL"))
        expected = {f"py3-none-{tag}" for tag in target.tag.split(".")}
        if (listed := set(re.findall(r"^Tag: (\S+)$", tags, re.M))) != expected:
            yield f"its metadata has the tags {sorted(listed)}"
        library = lief.parse(list(z.read(native[0])))
    assert isinstance(library, lief.ELF.Binary | lief.MachO.FatBinary | lief.MachO.Binary | lief.PE.Binary)
    binary = library.at(0) if isinstance(library, lief.MachO.FatBinary) else library
    assert binary
    exported, loads, oldest = describe(binary)
    if exported != (declared := set(api())):
        yield f"exports that csrc/pyllm.h has not: {sorted(exported - declared)}; that are missing: {sorted(declared - exported)}"
    if wrong := [name for name in loads if not target.loads.fullmatch(name)]:
        yield f"it loads {wrong}"
    if target.oldest and oldest > target.oldest:
        yield f"it asks for system version {oldest}, not {target.oldest}"


def levels(wheel: Path, target: Target) -> set[str]:
    """What the library of this machine's wheel finds in this CPU."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as z:
        library = ctypes.CDLL(z.extract(f"pyllm/{target.library}", folder))
        library.pyllm_cpu_levels.restype = ctypes.c_char_p
        return set(library.pyllm_cpu_levels().decode().split())


def make(target: Target, dist: Path) -> tuple[Path, list[str]]:
    wheel = build(target, dist)
    wrong = list(problems(target, wheel))
    if target.zig.startswith(f"{platform.machine()}-linux-gnu") and sys.platform == "linux" and levels(wheel, target) == {"ref"}:
        wrong.append("it finds no level of this CPU but the reference")
    return wheel, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and check the wheels of all platforms.")
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=", ".join(t.name for t in TARGETS))
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "dist", help="folder of the wheels")
    parser.add_argument("--try", action="store_true", dest="run", help="run the wheels that can be run here, with tools/try_wheels.py")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="wheels at a time")
    args = parser.parse_args()
    if unknown := [name for name in args.platforms if name not in {t.name for t in TARGETS}]:
        parser.error(f"there is no platform {unknown[0]!r}\nhint: choose from {', '.join(t.name for t in TARGETS)}")
    targets = [t for t in TARGETS if t.name in (args.platforms or [t.name])]
    lief.logging.disable()
    status = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for wheel, wrong in pool.map(lambda t: make(t, args.out), targets):
            print(f"{'FAIL' if wrong else 'ok':<5} {wheel.stat().st_size / 1e6:5.2f} MB  {wheel.name}", flush=True)
            for text in wrong:
                print(f"      {text}", flush=True)
            status |= bool(wrong)
    return try_all(args.out, [t.name for t in targets]) if args.run and not status else status


if __name__ == "__main__":
    sys.exit(main())
