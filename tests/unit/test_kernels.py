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
X86_FLAGS = {"avx2": AVX2, "avxvnni": AVX2 | {"avx_vnni"}, "avx512vnni": AVX512, "amx": AVX512 | {"amx_tile", "amx_int8"}}
FLAGS = X86_FLAGS if platform.machine() == "x86_64" else {"neon": {"asimd"}, "dotprod": {"asimddp"}, "i8mm": {"asimddp", "i8mm"}}


def cpu_flags() -> set[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return set(found[1].split()) if found else set()


# evex: level avxvnni, by AVX512-VNNI's encoding of its instructions; a CPU with AVX-VNNI runs the level itself in "native".
@pytest.mark.parametrize("run", ["native", "evex"] if X86_FLAGS["avx512vnni"] <= cpu_flags() else ["native"])
def test_every_kernel_equals_the_reference(run: str) -> None:
    out = kernel_test(run, "--", "--repeat", "1", timeout=600)
    levels = out.split("levels: ")[1].splitlines()[0].split()
    assert levels[0] == "ref" and (run == "native" or "avxvnni" in levels)
    assert passed(out) > 10000 * len(levels)


def test_levels_are_what_the_cpu_has() -> None:
    """A level that got lost would otherwise just not be tested. PYLLM_TEST_LEVELS: those of an emulated CPU, whose /proc is the host's."""
    emulated = os.environ.get("PYLLM_TEST_LEVELS")
    expected = emulated.split() if emulated else ["ref", *(level for level, need in FLAGS.items() if need <= cpu_flags())]
    assert ffi.string(lib.pyllm_cpu_levels()).decode().split() == expected


# Levels that differ from another in integer dot products alone: it has the kernels without any. smmla is for matmuls.
INHERITS = {"avxvnni": ("avx2", r"matmul_\w+|quantize_act|dot_peak|(attn_chunk|kv_store_[kv])_q[84]_0"),
            "dotprod": ("neon", r"matmul_\w+|quantize_act|dot_peak|(attn_chunk|kv_store_[kv])_q[84]_0"),
            "i8mm": ("dotprod", r"matmul_\w+|quantize_act|dot_peak"),
            "amx": ("avx512vnni", r"matmul_wide_\w+|dot_peak")}


def foreign_kernels(names: list[str], level: str) -> list[str]:
    """Those of "slot=symbol" names that are not of the level that they should be of. Of `angles` there is one variant."""
    below, own = INHERITS.get(level, (level, ".*"))
    rest = [name for name in names if not re.fullmatch(own, name.split("=")[0])]
    wrong = [name for name in names if name not in rest and not name.endswith("_" + level) and name != "angles=angles_ref"]
    return wrong + (foreign_kernels(rest, below) if rest else [])


def test_every_level_has_its_own_kernels() -> None:
    for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():
        names: list[str] = []
        while (name := lib.pyllm_kernel_name(level.encode(), len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        wide = [name for name in names if name.startswith("matmul_wide_")]
        assert len([name for name in names if name.startswith("matmul_") and name not in wide]) == 28
        assert len(wide) == (13 if level == "amx" else 0)
        assert not foreign_kernels(names, level)


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


@pytest.mark.parametrize("family", ["matmul", "attn"] if platform.machine() == "x86_64" else [])
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
    assert len(evex) == len(dots) > 30


@pytest.mark.slow
def test_other_seeds() -> None:
    for seed in ("2", "3"):
        assert passed(kernel_test("native", "--", "--seed", seed, timeout=300)) > 20000


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "levels"), [("haswell", "avx2"), ("neon", "neon"), ("dotprod", "neon dotprod"),
                                             ("i8mm", "neon dotprod i8mm")])
def test_emulated(cpu: str, levels: str) -> None:
    for tool in ("qemu-x86_64", "qemu-aarch64", "aarch64-linux-gnu-gcc"):
        assert shutil.which(tool), f"{tool} is missing; apt install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    out = kernel_test(cpu, timeout=600)
    assert f"levels: ref {levels}\n" in out
    assert passed(out) > 30000
