"""Metal kernels, compiled as C++ and run thread by thread (metal_emulator.py), against float64 within derived bounds (metal_cases.py); and
the emulator against kernels with planted mistakes. None of this runs on a GPU."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import metal_cases
import metal_emulator
import numpy as np
import pytest
from conftest import ROOT
from metal_cases import SCHEDULES, TYPES, Case
from metal_emulator import KERNELS, Emulator, KernelError
from variant import runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++: apt install g++")


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(metal_emulator.build())


@cache
def by_kernel() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in metal_cases.cases():
        found[case.kernel].append(case)
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_kernels_stay_within_the_error_of_their_arithmetic(emulator: Emulator, schedule: int) -> None:
    wrong = {(kernel, i): share for kernel, cases in by_kernel().items() for i, case in enumerate(cases)
             if not (share := case.run(emulator, schedule)) <= 1}
    assert not wrong


def test_every_kernel_has_cases(emulator: Emulator) -> None:
    assert set(emulator.names()) == set(by_kernel())


def test_every_type_of_the_plan_has_every_matrix_kernel() -> None:
    """The host's list of types, the shader's, and the cases' are one."""
    host = re.search(r"types\[\] = \{(.*?)\};", (ROOT / "csrc/engine/metal_plan.c").read_text(), re.S)
    shader = re.search(r"#define EVERY_TYPE\(X\)(.*)", (KERNELS / "formats.metal").read_text())
    assert host and shader
    assert re.findall(r"QTYPE_(\w+)", host[1].lower().replace("qtype_", "QTYPE_")) == re.findall(r"X\((\w+)\)", shader[1]) == list(TYPES)
    assert {f"{kernel}_{name}" for kernel in ("matvec", "matmul", "embed") for name in TYPES} <= set(by_kernel())


def test_arguments_are_laid_out_alike_in_c_and_in_the_shader() -> None:
    """args.h has nothing but int and float, whose size and alignment Metal fixes at 4 bytes."""
    code = re.sub(r"/\*.*?\*/", "", (KERNELS / "args.h").read_text(), flags=re.S)
    assert set(re.findall(r"^\s+(\w+) [\w, ]+;", code, re.M)) == {"int", "float"} and "*" not in code


# ---- planted mistakes ----

def part(*files: str, **changes: str) -> str:
    """Source with these files alone, of one tensor type, where `changes` says new text for old (first occurrence)."""
    text = "".join((KERNELS / name).read_text() for name in ("prelude.metal", "args.h", "common.metal", *files))
    text = text.replace("EVERY_TYPE(MATRIX_KERNELS)", "MATRIX_KERNELS(q4_0)")
    for old, new in zip(changes["old"].split("|"), changes["new"].split("|"), strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def q4_0(kernel: str) -> Case:
    return next(c for c in by_kernel()[f"{kernel}_q4_0"])


# In matmul: after the tiles are laid out, and before the next ones are.
STAGED = "row < a.rows && col + i < a.k ? x[long(row) * a.k + col + i] : 0.0f;\n        threadgroup_barrier(mem_flags::mem_threadgroup);"
UNSTAGED = STAGED.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", "")


def test_a_missing_barrier_gives_wrong_numbers_on_some_schedule() -> None:
    emulator = Emulator(metal_emulator.build(text=part("formats.metal", "linear.metal", old=STAGED, new=UNSTAGED)))
    shares = [q4_0("matmul").run(emulator, schedule) for schedule in SCHEDULES]
    assert max(shares) > 1 or np.isinf(max(shares)), shares


def test_a_device_pointer_is_no_threadgroup_pointer() -> None:
    with pytest.raises(KernelError, match=r"no matching function|could not convert|cannot convert"):
        metal_emulator.build(text=part("formats.metal", "linear.metal", old="group, lane, sg, tile);", new="group, lane, sg, y);"))


def test_what_a_kernel_only_reads_cannot_be_written() -> None:
    with pytest.raises(KernelError, match=r"read-only|assignment of"):
        metal_emulator.build(text=part("vector.metal", old="y[at + i] = a.has_add ?", new="x[at + i] = a.has_add ?"))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("v = simd_sum(v);", "if (lane < 31) v = simd_sum(v);", "waits for threads|different simdgroup operation"),
    ("threadgroup_barrier(mem_flags::mem_threadgroup);            // the last sum was read by all",
     "if (sg > 0) threadgroup_barrier(mem_flags::mem_threadgroup);", "barrier at another place|waits for threads"),
    ("threadgroup float parts[NORM_SIMDS];", "threadgroup float parts[9000];", "32 KB"),
])
def test_threads_that_do_not_meet_are_found(old: str, new: str, message: str) -> None:
    emulator = Emulator(metal_emulator.build(text=part("vector.metal", old=old, new=new)))
    with pytest.raises(KernelError, match=message):
        by_kernel()["norm"][0].run(emulator, 0)


def sanitized(kind: str, library: Path, schedule: int, kernels: str = "") -> subprocess.CompletedProcess[str]:
    """metal_cases.py in a child under a sanitizer."""
    env = os.environ | {"LD_PRELOAD": runtime({"address": "libasan.so", "thread": "libtsan.so"}[kind]), "ASAN_OPTIONS": "detect_leaks=0",
                        "TSAN_OPTIONS": "halt_on_error=0:report_thread_leaks=0", "OPENBLAS_NUM_THREADS": "1"}
    most = "2" if kind == "thread" else "100"       # cases of a kernel: a thread costs much there
    command = [sys.executable, str(Path(metal_cases.__file__)), str(library), str(schedule), kernels, most]
    if kind == "thread":
        command = ["setarch", "-R", *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500, check=False)


def test_a_read_past_a_buffer_is_found() -> None:
    library = metal_emulator.build("address", part("formats.metal", "linear.metal", old="float s = simd_sum(sum[r]);",
                                                   new="float s = simd_sum(sum[r]) + x[long(a.rows) * a.k];"))
    done = sanitized("address", library, 0, "matvec_q4_0")
    assert done.returncode and "heap-buffer-overflow" in done.stderr and "matvec" in done.stderr, done.stderr[-2000:]


def test_a_race_is_found() -> None:
    """The missing barrier, whatever the schedule makes of it; and none is where all barriers are."""
    library = metal_emulator.build("thread", part("formats.metal", "linear.metal", old=STAGED, new=UNSTAGED))
    done = sanitized("thread", library, 0, "matmul_q4_0")
    assert "data race" in done.stderr and "in simdgroup_load<" in done.stderr, done.stdout + done.stderr[-2000:]
    library = metal_emulator.build("thread", part("formats.metal", "linear.metal", old=STAGED, new=STAGED))
    done = sanitized("thread", library, 0, "matmul_q4_0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [0, 20])
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_all_kernels_are_clean_under_sanitizers(kind: str, schedule: int) -> None:
    done = sanitized(kind, metal_emulator.build(kind), schedule)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_half_conversions_are_numpys(emulator: Emulator) -> None:
    """All halves, and floats around every half and between: the emulator's conversions are IEEE's."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    x = np.concatenate([halves.astype(np.float32), np.nextafter(halves.astype(np.float32), np.float32(np.inf)),
                        (halves.astype(np.float64) * (1 + 2.0 ** -11)).astype(np.float32)])
    x = x[np.abs(x) < 65000]
    n = len(x) // 64 * 64
    rows = x[:n].reshape(-1, 64)
    seq, pos = np.zeros(len(rows), np.int32), np.arange(len(rows), dtype=np.int32)
    pages = -(-len(rows) // 16)
    table, pool = np.arange(pages, dtype=np.int32), np.zeros(pages * 2 * 16 * 64 * 2, np.uint8)
    args = struct.pack("11i2f", 1, 1, 64, 2 * 16 * 64 * 2, 0, 16 * 64 * 2, pages, 1, 0, 0, 1, 0.0, 0.0)
    emulator.launch("kv_store_f16", args, [rows.copy(), rows.copy(), pos, seq, table, pool], (1, len(rows), 1), 32)
    values = pool.view("<f2").reshape(pages, 2, 16, 64)[:, 1].reshape(-1, 64)[:len(rows)]
    assert np.array_equal(values, rows.astype(np.float16))


def test_the_page_lists_what_runs() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/metal_coverage.py"), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
