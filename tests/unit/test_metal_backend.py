"""The Metal backend from Python down to command buffers, with a fake device in place of Apple's (tests/kernels/metal/runtime.cpp) that runs
the kernels on the emulator and checks what the host encodes. None of this runs on a GPU.

Most runs use the build that traces: every access lies in its buffer, and commands that may run at the same time do not touch the same
memory."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_emulator
import numpy as np
import pytest
import tiny_gguf
from conftest import ROOT

import pyllm
from pyllm import LLM, errors

pytestmark = [pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the fake device is for x86-64 Linux"),
              pytest.mark.skipif(not shutil.which("g++"), reason="needs g++: apt install g++")]

_spec = importlib.util.spec_from_file_location("write_gguf", Path(__file__).parent.parent / "golden" / "write_gguf.py")
assert _spec and _spec.loader
goldens = sys.modules["write_gguf"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(goldens)

BAR = 2e-4                  # of max |logit|, as for the CPU (test_models.py)
FAMILIES = ("llama", "qwen3", "gemma2")        # between them norms of q and k, biases, both caps, windows
MORE = ("llama-tied-bias", "llama-yarn", "mistral", "qwen2", "gemma", "gemma3", "smollm3")


def child(command: str, *arguments: Any, kind: str = "trace", timeout: float = 600, base: dict[str, str] | None = None,
          **settings: int) -> dict[str, Any]:
    """A command of metal_driver.py on the fake device, in the environment `base`; what it prints."""
    env = dict(os.environ) if base is None else base
    fake = str(metal_emulator.build(kind, runtime=True))
    env = env | {"LD_PRELOAD": " ".join(filter(None, [env.get("LD_PRELOAD"), fake])), "OPENBLAS_NUM_THREADS": "1"}
    env |= {f"FAKE_METAL_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("metal_driver.py")), command, json.dumps(arguments)], env=env,
                          capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q4_0", ctx=2048)[0])
    return path


def files(names: Any, folder: Path) -> list[Any]:
    made = []
    for name in names:
        golden = goldens.load(name)
        path = folder / f"{name}.gguf"
        goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
        made.append((str(path), golden.ctx, list(map(int, golden.ids))))
    return made


def lacks(path: str, ctx: int | None) -> bool:
    """Whether a model's tape has an op, or a parameter of attention, that docs/metal.md does not list."""
    from pyllm import build
    from pyllm.gguf import GGUF

    listed = set(re.findall(r"^\| (\w+) \| yes \| `", (ROOT / "docs/metal.md").read_text(), re.M))
    with GGUF(path) as file:
        lines = [line for line in build.tape_text(file, ctx).splitlines()[1:] if line]
    steps = [line for line in lines if line.split()[0] not in ("hparam", "table", "ignore")]
    return any(step.split()[0] not in listed or re.search(r"^attn .* (sinks|causal|values)=", step) for step in steps)


def check_goldens(names: Any, folder: Path, kind: str = "trace", **settings: int) -> dict[str, Any]:
    result = child("golden", files(names, folder), "f32", str(folder), kind=kind, timeout=1800, **settings)
    for i, (name, said) in enumerate(zip(names, result["said"].values(), strict=True)):
        if said:
            continue
        want = goldens.load(name).logits
        for how in ("prefill", "decode", "chunked"):
            got = np.load(folder / f"{i}-{how}.npy")
            assert np.abs(got - want).max() / np.abs(want).max() < BAR, (name, how)
    assert result["live"] == 0
    return result


@pytest.mark.parametrize(("names", "schedule"), [(FAMILIES, 0), *(pytest.param(names, s, marks=pytest.mark.slow) for names, s in (
    (MORE, 0), (FAMILIES + MORE, 1), (FAMILIES + MORE, 20)))])
def test_families_are_transformers(names: tuple[str, ...], schedule: int, tmp_path: Path) -> None:
    result = check_goldens(names, tmp_path, schedule=schedule)
    assert not any(result["said"].values()) and result["copied"] == 0


@pytest.mark.slow
def test_other_families_run_or_say_what_is_missing(tmp_path: Path) -> None:
    others = [name for name in goldens.names() if name not in FAMILIES + MORE]
    refused = {name for name, (path, ctx, _) in zip(others, files(others, tmp_path), strict=True) if lacks(path, ctx)}
    result = check_goldens(others, tmp_path, kind="plain")
    said = {name: text for name, text in zip(others, result["said"].values(), strict=True) if text}
    assert set(said) == refused and len(others) - len(refused) > 20
    assert all(text.startswith("backend metal cannot run step ") and "\nhint: " in text for text in said.values())


@pytest.mark.parametrize("kind", ["q4_k", "q6_k"])
def test_quantized_models_are_the_interpreter(kind: str, tmp_path: Path) -> None:
    """Against float64 over the same weights, which the GPU multiplies with unrounded activations."""
    from pyllm import build, ref
    from pyllm.gguf import GGUF

    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.llama(kind)[0])
    ids = list(range(3, 40))
    with GGUF(path) as file:
        want = ref.run(build.tape_text(file, None), file.read, ids)
    child("golden", [(str(path), None, ids)], "f32", str(tmp_path))
    for how in ("prefill", "decode", "chunked"):
        got = np.load(tmp_path / f"0-{how}.npy")
        assert np.abs(got - want).max() / np.abs(want).max() < BAR


def test_batches_mix_and_states_come_back(tiny: Path) -> None:
    result = child("mixed", str(tiny), list(range(3, 33)), schedule=20)
    assert result["apart"] < BAR and result["same"] and result["cancelled"] and result["live"] == 0


def test_one_row_far_along_is_cut_into_parts(tiny: Path) -> None:
    result = child("long", str(tiny), [3 + i % 290 for i in range(600)], kind="plain")
    assert result["apart"] < BAR and result["kernel attn_merge"] == 2        # one a layer


def test_plans_are_replayed_and_steps_make_no_pipelines(tiny: Path) -> None:
    result = child("shapes", str(tiny), list(range(3, 20)), kind="plain")
    assert result["made"] == result["pipelines"]
    assert result["command buffers"] == 2 * (8 * 1 + 2 * 1 + 2 * 2)      # more than 8 rows: 32 commands at a time, with logits there are 33
    assert result["barriers"] < result["dispatches"]         # q, k and v, for example, may run at the same time


def test_a_step_of_many_rows_is_cancelled_between_command_buffers(tmp_path: Path) -> None:
    path = tmp_path / "deep.gguf"
    path.write_bytes(tiny_gguf.llama("q4_0", n_layers=5)[0])
    result = child("stop", str(path), list(range(3, 20)), kind="plain")
    assert result["whole"] == 3 and result["after"] == 1 and result["stopped"] and result["apart"] < BAR


@pytest.mark.parametrize("schedule", [1, 20])
def test_order_between_barriers_is_without_effect(schedule: int, tiny: Path) -> None:
    """Same bits for another order of threads and of commands: there is no race that shows."""
    plain, other = (child("load", str(tiny), {"backend": "metal"}, kind="plain", schedule=s) for s in (0, schedule))
    assert plain["tokens"] == other["tokens"]


def test_a_forgotten_barrier_is_found(tiny: Path) -> None:
    result = child("load", str(tiny), {"backend": "metal"}, drop_barriers=1)
    assert "may run at the same time" in result["message"]


def test_weights_in_several_windows(tmp_path: Path) -> None:
    """Buffers that do not hold all weights: more of them, the same tokens; that do not hold one tensor: its name."""
    path = tmp_path / "large.gguf"
    path.write_bytes(tiny_gguf.llama("f32", n_layers=4)[0])
    options = {"backend": "metal", "ctx": 64, "parallel": 1}
    whole, windows = (child("load", str(path), options, **s) for s in ({}, {"max_buffer": 4_000_000}))
    assert windows["tokens"] == whole["tokens"] and windows["in place"] == whole["in place"] + 2 and windows["copied"] == 0
    result = child("load", str(path), options, max_buffer=500_000)
    assert re.match(r"tensor blk.0.ffn_\w+.weight has 0 MB, the GPU Emulator takes 0 MB at a time", result["message"])


def test_memory_that_is_not_whole_pages(tiny: Path) -> None:
    """A system with larger pages than mmap gives here: weights are copied, what the GPU writes cannot be: an error, and no crash."""
    result = child("load", str(tiny), {"backend": "metal"}, page=1 << 40)
    assert result["error"] == "OutOfMemory" and result["live"] == 0 and result["copied"] > 0


def test_backends_are_chosen(tiny: Path, tmp_path: Path) -> None:
    metal = child("load", str(tiny), {"backend": "metal"}, kind="plain")
    assert metal["backend"] == metal["level"] == "metal" and metal["live"] == 0
    assert all('hint: load' in metal[what] for what in ("profile", "observe", "part", "write"))
    assert child("load", str(tiny), {"backend": "auto"}, kind="plain")["backend"] == "metal"
    assert child("load", str(tiny), {}, kind="plain")["backend"] == "cpu"
    assert child("load", str(tiny), {"backend": "auto"}, kind="plain", none=1)["backend"] == "cpu"
    assert child("load", str(tiny), {"backend": "metal"}, kind="plain", family=1006)["message"].startswith("the GPU Emulator is older than")
    other = tmp_path / "q2_k.gguf"
    other.write_bytes(tiny_gguf.llama("q2_k")[0])
    assert child("load", str(other), {"backend": "auto"}, kind="plain")["backend"] == "cpu"
    said = child("load", str(other), {"backend": "metal"}, kind="plain")
    assert said["error"] == "UnsupportedModel" and "step 0 of the tape, embed " in said["message"] and "q2_k" in said["message"]
    assert child("free", str(tiny), kind="plain")["live"] == 0


def test_without_metal_it_says_so(tiny: Path) -> None:
    with pytest.raises(errors.UnsupportedModel, match="there is no Metal on this machine\nhint: "):
        LLM(tiny, backend="metal")
    with LLM(tiny, backend="auto") as llm:
        assert llm.backend == "cpu" and llm.info["backend"] == "cpu"


@pytest.mark.parametrize("options", [{"backend": "gpu"}, {"backend": None}, {"level": "metal"}, {"backend": "metal", "pack_cache": True},
                                     {"backend": "metal", "level": "ref"}])
def test_arguments_that_make_no_sense(options: dict[str, Any], tiny: Path) -> None:
    with pytest.raises(pyllm.ArgumentError, match="hint: "):
        LLM(tiny, **options)


def test_the_device_tells_right_commands_from_wrong_ones(tmp_path: Path) -> None:
    """csrc/kernels/metal/device.c from C, on the fake device: every check of that shows."""
    fake, program = metal_emulator.build("trace", runtime=True), tmp_path / "device_test"
    sources = [str(ROOT / name) for name in ("tests/kernels/metal/device_test.c", "csrc/kernels/metal/device.c", "csrc/base/alloc.c",
                                             "csrc/base/err.c")]
    subprocess.run(["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", *sources, str(fake),
                    f"-Wl,-rpath,{fake.parent}", "-o", str(program)], check=True)
    shader = tmp_path / "source.metal"
    shader.write_text(metal_emulator.source())
    done = subprocess.run([str(program), str(shader)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split("\t") for line in done.stdout.splitlines())
    assert [name for name, what in said.items() if what == "ok"] == ["open", "pipeline", "in place", "copied", "right",
                                                                     "reads that behind a barrier"]
    assert (said.pop("sum"), said.pop("live")) == ("2 4 598", "0")
    gave_up = {name: what.removeprefix("the GPU Emulator gave up: ") for name, what in said.items() if "gave up" in what}
    assert gave_up == {
        "a buffer is missing": "add, buffer 3: not bound",
        "a buffer too many": "add: buffer 4 is bound, but no parameter",
        "arguments too short": "add, buffer 0: 16 bytes of arguments, not 20",
        "offset behind the end": f"add, buffer 1: offset {os.sysconf('SC_PAGESIZE')} of {os.sysconf('SC_PAGESIZE')}",
        "offset between floats": f"add, buffer 1: offset 2 of {os.sysconf('SC_PAGESIZE')}",
        "buffer too short": "add, buffer 3: access outside of the buffer",
        "empty grid": "add: an empty grid",
        "threads": "add: bad threads",
        "reads what the last one writes": "add, buffer 1: may run at the same time as add, one writes what the other touches",
        "writes what the last one reads": "add, buffer 3: may run at the same time as add, one writes what the other touches",
        "writes what the last one writes": "add, buffer 3: may run at the same time as add, one writes what the other touches",
    }
    assert said["no such kernel"] == "Metal has no kernel subtract" and "needs 2048 threads" in said["too many threads"]
    assert said["not at a page"] == said["not whole pages"] == "the GPU Emulator takes no buffer of 0 MB"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-macos.11.0", "x86_64-macos.10.13"])
def test_the_host_compiles_and_links_for_macos(target: str, tmp_path: Path) -> None:
    """Without a framework: what it needs of Apple's libraries it looks up when it runs."""
    ziglang = pytest.importorskip("ziglang", reason="needs a compiler for macOS: pip install ziglang")
    cc = [str(Path(ziglang.__file__).parent / "zig"), "cc", "-target", target, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
          "-ffp-contract=off", "-fPIC"]
    sources = [str(ROOT / "csrc" / name) for name in ("kernels/metal/device.c", "base/alloc.c", "base/err.c")]
    library = tmp_path / "libdevice.dylib"
    subprocess.run([*cc, "-shared", *sources, "-o", str(library)], check=True)
    assert {b"/System/Library/Frameworks/Metal.framework/Metal", b"MTLCreateSystemDefaultDevice"} <= set(library.read_bytes().split(b"\0"))
    for name in ("metal", "metal_plan"):
        subprocess.run([*cc, "-c", str(ROOT / f"csrc/engine/{name}.c"), "-o", str(tmp_path / f"{name}.o")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_host_is_clean_under_sanitizers(sanitizers: str, tiny: Path, sanitized: Callable[[str], dict[str, str]]) -> None:
    """The library is instrumented, the fake device is not."""
    base = sanitized(sanitizers)
    for command in ("mixed", "shapes"):
        result = child(command, str(tiny), list(range(3, 20)), kind="plain", base=base)
        assert result.get("same", True)


@pytest.mark.slow
def test_smollm2_follows_the_golden(smollm2: Path) -> None:
    """The rule of test_oracle.py, over the first tokens of each prompt's answer: the emulator computes a token in seconds."""
    golden = json.loads((ROOT / "tests/data/golden/smollm2-greedy.json").read_text())["results"]
    for r in golden:
        result = child("swaps", str(smollm2), r["prompt_ids"], r["new_ids"], kind="plain", timeout=3000)
        assert len(result["found"]) <= 3 and all(gap < 0.5 and second for _, gap, second in result["found"]), (r["prompt"], result["found"])
        first = min([i for i, _, _ in result["found"]], default=8)
        assert result["tokens"][:first] == [t for t in r["new_ids"][:8]][:first]
