"""The kernel test (tests/kernels/kernel_test.h), built and run here and, in the full lane, as other CPUs in emulators."""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pyllm._core import ffi, lib

ROOT = Path(__file__).parents[2]


def kernel_test(*args: str, timeout: int) -> str:
    run = subprocess.run(["sh", str(ROOT / "tools/kernel_test.sh"), *args], capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout


def passed(out: str) -> int:
    found = re.search(r"^(\d+) passed, 0 failed$", out, re.M)
    assert found, out
    return int(found[1])


# What a level needs, as the kernel of the system names it. On ARM neon is part of the architecture.
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
FLAGS = {"avx2": AVX2, "avxvnni": AVX2 | {"avx_vnni"},
         "avx512vnni": AVX512, "amx": AVX512 | {"amx_tile", "amx_int8"}}


def cpu_flags() -> set[str]:
    found = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return set(found[1].split()) if found else set()


# evex: level avxvnni, by AVX512-VNNI's encoding of its instructions; a CPU with AVX-VNNI runs the level itself in "native".
@pytest.mark.parametrize("run", ["native", "evex"] if FLAGS["avx512vnni"] <= cpu_flags() else ["native"])
def test_every_kernel_equals_the_reference(run: str) -> None:
    out = kernel_test(run, "--", "--repeat", "1", timeout=600)
    levels = out.split("levels: ")[1].splitlines()[0].split()
    assert levels[0] == "ref" and (run == "native" or "avxvnni" in levels)
    assert passed(out) > 10000 * len(levels)


def test_levels_are_what_the_cpu_has() -> None:
    """A level that got lost would otherwise just not be tested."""
    levels = ffi.string(lib.pyllm_cpu_levels()).decode().split()
    if platform.machine() == "x86_64":
        assert levels == ["ref", *(level for level, need in FLAGS.items() if need <= cpu_flags())]
    else:
        assert levels == ["ref", "neon"] and platform.machine() == "aarch64"


def test_every_level_has_its_own_kernels() -> None:
    for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():
        names: list[str] = []
        while (name := lib.pyllm_kernel_name(level.encode(), len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        wide = [name for name in names if name.startswith("matmul_wide_")]
        assert len([name for name in names if name.startswith("matmul_") and name not in wide]) == 28
        if level == "amx":          # kernels that are added to those of avx512vnni
            assert len(wide) == 13 and all(name.endswith("_amx") for name in wide)
            level = "avx512vnni"
            names = [name for name in names if name not in [*wide, "dot_peak=dot_peak_amx"]]
        foreign = {name.split("=")[0] for name in names if not name.endswith("_" + level)}
        assert foreign <= {"angles"}


# ---- AVX-VNNI: the files that were run as evex, and what the library is built of ----

def instructions(source: str, flags: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """A file of the level, compiled and disassembled: (instructions without encoding, padding and addresses; those encoded as EVEX)"""
    obj = folder / "level.o"
    subprocess.run([*shlex.split(os.environ.get("CC") or "cc"), *flags, "-c", str(ROOT / source), "-o", str(obj)], check=True, timeout=600)
    listing = subprocess.run(["objdump", "-d", "--wide", "--insn-width=16", str(obj)], capture_output=True, text=True, check=True,
                             timeout=60).stdout
    lines = [(m[1], m[2]) for m in re.finditer(r"^ *[0-9a-f]+:\t([0-9a-f ]+?) *\t(.+)$", listing, re.M)]
    plain = [re.sub(r"^(j\w+|call) .*|-?(?:0x)?[0-9a-f]+(?=\(%rip\))| *[<#].*|\{e?vex\} *", r"\1", text).strip() for _, text in lines]
    padding = re.compile(r"(data16 |cs )*nop|xchg +%ax,%ax")
    return [text for text in plain if not padding.match(text)], [text for code, text in lines if code.startswith("62 ")]


@pytest.mark.parametrize("family", ["matmul", "attn", "vec"] if platform.machine() == "x86_64" else [])
def test_avxvnni_has_the_instructions_that_were_run(family: str, tmp_path: Path) -> None:
    """As the library is built: no EVEX instruction, so nothing that an AVX-VNNI CPU lacks. Built as the kernel test runs it: the same
    instructions one by one, of which just the dot products are encoded as EVEX."""
    assert shutil.which("objdump"), "objdump is missing; apt install binutils"
    named = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse((ROOT / "setup.py").read_text()).body
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("CFLAGS", "LEVELS")}
    source = f"csrc/kernels/x86/{family}_avxvnni.c"
    vex, none = instructions(source, [*named["CFLAGS"], *named["LEVELS"]["avxvnni"][1]], tmp_path)
    run, evex = instructions(source, [*named["CFLAGS"], *named["LEVELS"]["avx2"][1], "-DPYLLM_AVXVNNI_EVEX"], tmp_path)
    dots = [text for text in vex if text.startswith("vpdp")]
    assert none == [] and vex == run
    assert len(evex) == len(dots) and (family == "vec" or len(dots) > 100)


@pytest.mark.slow
def test_other_seeds() -> None:
    for seed in ("2", "3"):
        assert passed(kernel_test("native", "--", "--seed", seed, timeout=300)) > 20000


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "level"), [("haswell", "avx2"), ("aarch64", "neon")])
def test_emulated(cpu: str, level: str) -> None:
    for tool in ("qemu-x86_64", "qemu-aarch64", "aarch64-linux-gnu-gcc"):
        assert shutil.which(tool), f"{tool} is missing; apt install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    out = kernel_test(cpu, timeout=600)
    assert f"levels: ref {level}\n" in out
    assert passed(out) > 30000
