"""Builds csrc/ into one shared library, pyllm/libpyllm.so (.dylib, .dll), and the cffi declarations pyllm/_ffi.py.

No Python headers are needed (cffi ABI mode), so one wheel py3-none-PLATFORM serves every Python. CC, PYLLM_CFLAGS and PYLLM_LDFLAGS are
honoured; PYLLM_PLAT names the wheel's platform in a cross build. Objects are rebuilt when the compiler, their command, source or a header
changes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:                     # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
CFLAGS = ["-std=gnu11", "-O3", "-g0", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
          "-fno-strict-aliasing", "-fvisibility=hidden", "-fPIC"]
# A level's flags, by the suffix of a file's name, and the same for compilers that call it otherwise (zig). -fno-trapping-math changes no
# result; it lets compares and selects be vectorised.
LEVELS = {
    "avx2": ("x86_64", ["-mavx2", "-mfma", "-mf16c"]),
    "avxvnni": ("x86_64", ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]),
    "avx512vnni": ("x86_64", ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni",
                              "-mprefer-vector-width=512"]),
    "amx": ("x86_64", ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni",
                       "-mprefer-vector-width=512", "-mamx-tile", "-mamx-int8"]),
    "neon": ("aarch64", []),
    "dotprod": ("aarch64", ["-march=armv8.2-a+dotprod"], ["-mcpu=generic+v8_2a+dotprod"]),
    "i8mm": ("aarch64", ["-march=armv8.2-a+dotprod+i8mm"], ["-mcpu=generic+v8_2a+dotprod+i8mm"]),
}
# The Metal shader source: these files of csrc/kernels/metal, one after the other, compiled by the system when a model is loaded.
METAL = ("prelude.metal", "args.h", "common.metal", "formats.metal", "linear.metal", "vector.metal", "attention.metal")
# What a level asks of the assembler: gcc may know the flag and call an assembler (before binutils 2.36) that does not know the instruction.
PROBES = {"avxvnni": '__asm__("{vex} vpdpbusd %ymm0, %ymm0, %ymm0");\n'}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def macros(cc: list[str]) -> str:
    """What the compiler predefines for its target. Not from the null device: zig cc wants a file with a name."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.c"
        empty.write_text("")
        return run([*cc, "-dM", "-E", str(empty)]).stdout


def write_ffi(header: Path, out: Path) -> None:
    """pyllm/_ffi.py from the part of pyllm.h between the cdef marks."""
    import cffi

    text = header.read_text().split("/* cdef begin */")[1].split("/* cdef end */")[0]
    ffi = cffi.FFI()
    ffi.cdef(text)
    ffi.set_source("pyllm._ffi", None)
    ffi.emit_python_code(str(out))


def write_metal(out: Path) -> Path:
    """The shader source as a C file: the system compiles it when a model is loaded."""
    text = "".join((ROOT / "csrc/kernels/metal" / name).read_text() for name in METAL)
    lines = (f'    "{line}\\n"' for line in text.replace("\\", "\\\\").replace('"', '\\"').splitlines())
    out.write_text("extern const char metal_source[];\nconst char metal_source[] =\n" + "\n".join(lines) + ";\n")
    return out.resolve()


class FreshBuild(build):
    """Starts from an empty package folder: a module or a library that an earlier build left there would ride along in the wheel."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "pyllm", ignore_errors=True)
        super().run()


class BuildLibrary(build_ext):
    """One shared library instead of an extension module."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.cc = shlex.split(os.environ.get("CC") or "cc")
        self.target = macros(self.cc)
        self.arch = next((a for a in ("x86_64", "aarch64") if f"#define __{a}__ " in self.target), "other")
        self.system = next((s for s in ("_WIN32", "__APPLE__", "__linux__") if f"#define {s} " in self.target), "other")

    def get_ext_filename(self, fullname: str) -> str:
        name = {"_WIN32": "pyllm.dll", "__APPLE__": "libpyllm.dylib"}.get(self.system, "libpyllm.so")
        return os.path.join(*fullname.split(".")[:-1], name)

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp) / "obj"
        build.mkdir(parents=True, exist_ok=True)
        headers = sorted(ROOT.glob("csrc/**/*.h")) + sorted(ROOT.glob("csrc/**/*.def"))
        stamp = hashlib.sha256(self.target.encode() + b"".join(h.read_bytes() for h in headers)).hexdigest()
        base = [*CFLAGS, *self.missing_levels(), *shlex.split(os.environ.get("PYLLM_CFLAGS", ""))]
        jobs = [(src, build / (src.replace("/", "_") + ".o"), [*base, *flags]) for src in ext.sources
                if (flags := self.flags(src)) is not None]
        jobs.append((str(write_metal(build / "metal_source.c")), build / "metal_source.o", base))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            failed = [text for text in pool.map(lambda j: self.compile(*j, stamp), jobs) if text]
        if failed:
            raise SystemExit("\n".join(failed))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        linked = Path(self.build_temp) / "linked" / library.name        # linkers for Windows write more files beside it
        linked.parent.mkdir(exist_ok=True)
        extra = shlex.split(os.environ.get("PYLLM_LDFLAGS", ""))
        link = ["-Wl,-z,defs", "-Wl,-z,noexecstack"] if self.system == "__linux__" and "-fsanitize" not in " ".join(extra) else []
        done = run([*self.cc, "-shared", "-o", str(linked), *(str(o) for _, o, _ in jobs), *link, "-pthread", *extra])
        if done.returncode:
            raise SystemExit(done.stderr)
        self.copy_file(str(linked), str(library))
        write_ffi(ROOT / "csrc/pyllm.h", library.parent / "_ffi.py")

    def missing_levels(self) -> list[str]:
        """-DPYLLM_NO_LEVEL for levels whose flags this compiler does not take. In PYLLM_CFLAGS it leaves that level out."""
        unwanted = shlex.split(os.environ.get("PYLLM_CFLAGS", ""))
        self.levels: dict[str, list[str]] = {}
        probe = Path(self.build_temp) / "probe.c"
        probe.parent.mkdir(parents=True, exist_ok=True)
        missing = []
        for name, (arch, *alternatives) in LEVELS.items():
            if arch != self.arch or f"-DPYLLM_NO_{name.upper()}" in unwanted:
                continue
            probe.write_text("int probe;\n" + PROBES.get(name, ""))
            for flags in alternatives:
                if run([*self.cc, *flags, "-c", str(probe), "-o", str(probe.with_suffix(".o"))]).returncode == 0:
                    self.levels[name] = flags
                    break
            else:
                print(f"pyllm: {self.cc[0]} does not take the flags of {name}; that level is left out", file=sys.stderr)
                missing.append(f"-DPYLLM_NO_{name.upper()}")
        return missing

    def flags(self, src: str) -> list[str] | None:
        """Extra flags of a source file; None: not for this target."""
        suffix = Path(src).stem.rsplit("_", 1)[-1]
        return self.levels.get(suffix) if suffix in LEVELS else []

    def compile(self, src: str, obj: Path, flags: list[str], stamp: str) -> str | None:
        command = [*self.cc, *flags, "-c", str(ROOT / src), "-o", str(obj)]
        key = hashlib.sha256((stamp + " ".join(command)).encode() + (ROOT / src).read_bytes()).hexdigest()
        mark = obj.with_suffix(".key")
        if obj.exists() and mark.exists() and mark.read_text() == key:
            return None
        done = run(command)
        if done.returncode:
            return done.stderr
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        mark.write_text(key)
        return None

    def get_outputs(self) -> list[str]:
        library = self.get_ext_fullpath("pyllm._native")
        return [library, os.path.join(os.path.dirname(library), "_ffi.py")]

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "pyllm" / "_ffi.py"
        if built.exists():
            self.copy_file(str(built), str(ROOT / "pyllm" / "_ffi.py"))


class PlatformWheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        plat = os.environ.get("PYLLM_PLAT") or sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return "py3", "none", plat


os.chdir(ROOT)
license_field = "license" if int(setuptools.__version__.split(".")[0]) < 77 else "license_expression"
setup(
    **{license_field: "MIT"},
    ext_modules=[Extension("pyllm._native", sources=sorted(str(p) for p in Path("csrc").glob("**/*.c")),
                           depends=sorted(str(p) for e in ("h", "def", "metal") for p in Path("csrc").glob(f"**/*.{e}")))],
    cmdclass={"build": FreshBuild, "build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
