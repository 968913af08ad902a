"""The kernel test (tests/kernels/kernel_test.h), built and run here and, in the full lane, as other CPUs in emulators."""

from __future__ import annotations

import platform
import re
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


def test_native() -> None:
    out = kernel_test("native", "--", "--repeat", "1", timeout=300)
    levels = out.split("levels: ")[1].splitlines()[0].split()
    assert levels[0] == "ref"
    assert passed(out) > 10000 * len(levels)


# What a level needs, as the kernel of the system names it. On ARM neon is part of the architecture.
AVX2 = {"avx2", "fma", "f16c"}
FLAGS = {"avx2": AVX2, "avx512vnni": AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}}
# Types with kernels of their own on every level above ref, and those that always run the reference's.
FAST = {"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"}
SLOW = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "nvfp4", "q1_0", "q2_0"}


def test_levels_are_what_the_cpu_has() -> None:
    """A level that got lost would otherwise just not be tested."""
    levels = ffi.string(lib.pyllm_cpu_levels()).decode().split()
    if platform.machine() == "x86_64":
        found = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
        assert found
        assert levels == ["ref", *(level for level, need in FLAGS.items() if need <= set(found[1].split()))]
    else:
        assert levels == ["ref", "neon"] and platform.machine() == "aarch64"


def test_every_level_has_its_own_kernels() -> None:
    for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():
        names: list[str] = []
        while (name := lib.pyllm_kernel_name(level.encode(), len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        foreign = {name.split("=")[0] for name in names if not name.endswith("_" + level)}
        assert {f"matmul_{t}=matmul_{t}_{level}" for t in FAST} <= set(names)
        assert foreign <= {f"matmul_{t}" for t in SLOW} | {"angles"}


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
