"""The kernel test (tests/kernels/kernel_test.h), built and run here and, in the full lane, as other CPUs in emulators."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
