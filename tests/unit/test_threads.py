"""The thread pool under ThreadSanitizer, and the choice of a thread count on made-up machines."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = "sys/devices/system/cpu/cpu{}/{}"


def compile_c(out: Path, sources: Sequence[str], *flags: str) -> Path:
    cc = shlex.split(os.environ.get("CC") or "cc")
    subprocess.run([*cc, "-std=gnu11", "-O1", "-g", *flags, "-o", str(out), *(str(ROOT / s) for s in sources), "-pthread", "-lm"],
                   check=True, timeout=120)
    return out


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_pool(tmp_path: Path, sanitizers: str) -> None:
    base = [f"csrc/base/{name}.c" for name in ("threads", "cores", "fpenv", "alloc")]
    program = compile_c(tmp_path / "threads_test", ["tests/kernels/threads_test.c", *base], f"-fsanitize={sanitizers}",
                        "-fno-sanitize-recover=undefined", "-frounding-math", "-DPYLLM_FAULTS")
    # Older sanitizer runtimes do not know addresses as random as newer kernels make them.
    run = subprocess.run(["setarch", platform.machine(), "-R", str(program)], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ok\n", "")


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("cores") / "cores_test", ["tests/kernels/cores_test.c"])


def siblings(*lists: str) -> dict[str, str]:
    return {CPU.format(c, "topology/thread_siblings_list"): text + "\n" for c, text in enumerate(lists)}


def per_cpu(name: str, values: Sequence[int]) -> dict[str, str]:
    return {CPU.format(c, name): f"{v}\n" for c, v in enumerate(values)}


ALONE = siblings(*"01234567")
V2 = {"proc/self/cgroup": "0::/user.slice/job.scope\n"}
V1 = {"proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/docker/abc\n1:cpuset:/y\n0::/\n"}


def v2(path: str, text: str) -> dict[str, str]:
    return {f"sys/fs/cgroup{path}/cpu.max": text + "\n"}


def v1(path: str, quota: int, period: int) -> dict[str, str]:
    return {f"sys/fs/cgroup/cpu{path}/cpu.cfs_{k}_us": f"{v}\n" for k, v in (("quota", quota), ("period", period))}


MACHINES: list[tuple[str, Mapping[str, str], int, int, int]] = [
    # name, files, affinity mask, threads by default, threads allowed
    ("nothing known", {}, 0xF, 4, 4),
    ("every CPU a core", ALONE, 0xFF, 8, 8),
    ("masked", ALONE, 0x15, 3, 3),
    ("threads side by side", siblings("0-1", "0-1", "2-3", "2-3"), 0xF, 2, 4),
    ("threads far apart", siblings("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"), 0xFF, 4, 8),
    ("first threads masked out", siblings("0,2", "1,3", "0,2", "1,3"), 0xC, 2, 2),
    ("four threads a core, two allowed", siblings("0-3", "0-3", "0-3", "0-3"), 0xC, 1, 2),
    ("big and little", {**ALONE, **per_cpu("cpu_capacity", [400, 400, 400, 400, 800, 800, 1024, 1024])}, 0xFF, 2, 8),
    ("near enough to the best", {**ALONE, **per_cpu("cpu_capacity", [819, 820, 1024, 1024])}, 0xF, 3, 4),
    ("only little ones allowed", {**ALONE, **per_cpu("cpu_capacity", [400, 400, 400, 400, 800, 800, 1024, 1024])}, 0xF, 4, 4),
    ("performance and efficiency cores", {**siblings("0-1", "0-1", "2-3", "2-3", "4", "5"),
                                          **per_cpu("cpufreq/cpuinfo_max_freq", [5200000] * 4 + [3900000] * 2)}, 0x3F, 2, 6),
    ("cores of slightly different clocks", {**ALONE, **per_cpu("cpufreq/cpuinfo_max_freq", [5000000, 5200000])}, 0x3, 2, 2),
    ("v2 quota", {**ALONE, **V2, **v2("/user.slice/job.scope", "250000 100000")}, 0xFF, 3, 3),
    ("v2 quota of a parent", {**ALONE, **V2, **v2("/user.slice/job.scope", "max 100000"),
                              **v2("/user.slice", "200000 100000")}, 0xFF, 2, 2),
    ("v2 without a limit", {**ALONE, **V2, **v2("/user.slice/job.scope", "max 100000")}, 0xFF, 8, 8),
    ("v2 in a container", {**ALONE, **V2, **v2("", "50000 100000")}, 0xFF, 1, 1),
    ("v2 quota above the cores", {**ALONE, **V2, **v2("/user.slice", "1600000 100000")}, 0xF, 4, 4),
    ("v1 quota", {**ALONE, **V1, **v1("/docker/abc", 400000, 100000)}, 0xFF, 4, 4),
    ("v1 in a container", {**ALONE, **V1, **v1("", 150000, 50000)}, 0xFF, 3, 3),
    ("v1 without a limit", {**ALONE, **V1, **v1("/docker/abc", -1, 100000)}, 0xFF, 8, 8),
    ("broken files", {**siblings("", "x", "-", "9999999999999999999"), **V2, **v2("", "17"), **per_cpu("cpu_capacity", [0, 0])}, 0xF, 4, 4),
]


@pytest.mark.parametrize(("name", "files", "mask", "default", "allowed"), MACHINES, ids=[m[0] for m in MACHINES])
def test_threads_default(counter: Path, tmp_path: Path, name: str, files: Mapping[str, str], mask: int, default: int, allowed: int) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    run = subprocess.run([str(counter), str(tmp_path), f"{mask:x}"], capture_output=True, text=True, timeout=20, check=True)
    assert run.stdout == f"{default} {allowed}\n"
