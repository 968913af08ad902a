"""Memory and threads run out at every possible place: always OutOfMemory, nothing leaks, and the same call works afterwards."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import metal_emulator
import pytest
from test_bit_identity import golden_file
from variant import build


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build(tmp_path_factory.mktemp("faults"), "-DPYLLM_FAULTS -O1")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_fault_is_out_of_memory(faulty: dict[str, str], name: str, stride: int, tmp_path: Path) -> None:
    offset = random.randrange(stride)
    print(f"every {stride}th call from {offset + 1}")
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("faults_driver.py")), str(golden_file(name, tmp_path)), str(stride),
                           str(offset), "cpu"], env=faulty, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    total, failed = map(int, done.stdout.split())
    assert 50 < total < 2000 and failed == 2 * len(range(1 + offset, total + 1, stride))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++: apt install g++")
def test_every_fault_of_the_metal_backend_is_out_of_memory(faulty: dict[str, str], tmp_path: Path) -> None:
    env = faulty | {"LD_PRELOAD": str(metal_emulator.build(runtime=True))}
    driver, offset = str(Path(__file__).with_name("faults_driver.py")), random.randrange(5)
    print(f"every 5th call from {offset + 1}")
    done = subprocess.run([sys.executable, driver, str(golden_file("llama", tmp_path)), "5", str(offset), "metal"], env=env, cwd=tmp_path,
                          capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    total, failed = map(int, done.stdout.split())
    assert 50 < total < 2000 and failed == 2 * len(range(1 + offset, total + 1, 5))
