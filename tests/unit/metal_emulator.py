"""The Metal kernels as C++ (tests/kernels/metal): the source is changed where C++ cannot take it, compiled with g++ and called by name."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
KERNELS, SHIM = ROOT / "csrc/kernels/metal", ROOT / "tests/kernels/metal"
PARAMETERS = {"uint3 group": "threadgroup_position_in_grid", "ushort lane": "thread_index_in_simdgroup",
              "ushort sg": "simdgroup_index_in_threadgroup"}
SPACES = "device|constant|threadgroup"
FLAGS = {
    "plain": ["-O2", "-march=native"],
    "trace": ["-O1", "-DEMU_TRACE"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}


class KernelError(Exception):
    """What the compiler or the emulator says of a kernel."""


def source() -> str:
    """The shader source as setup.py embeds it in the library."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "METAL":
            return "".join((KERNELS / name).read_text() for name in ast.literal_eval(node.value))
    raise AssertionError("setup.py has no METAL")


def translate(text: str) -> str:
    """Metal's language to C++ over msl.h, line for line."""
    own = re.sub(r"^(#include <metal_\w+>|using namespace metal;)$", "", text, flags=re.M)
    expanded = subprocess.run(["g++", "-E", "-x", "c++", "-"], input=own, capture_output=True, text=True, check=True).stdout
    _check_attributes(expanded)
    kernels = re.findall(r"\bkernel void (\w+)\(", expanded)
    text = re.sub(r"\s*\[\[\w+(\(\d+\))?\]\]", "", expanded)
    arrays = iter(range(1 << 20))
    text = re.sub(r"\bthreadgroup (\w+) (\w+)\[([^\]]+)\];",
                  lambda m: f"ptr<threadgroup_space, {m[1]}> {m[2]} = emu_array<{m[1]}>({m[3]}, {next(arrays) % 64});", text)
    text = re.sub(rf"\b({SPACES}) (const )?(\w+) \*", lambda m: f"ptr<{m[1]}_space, {m[2] or ''}{m[3]}> ", text)
    text = re.sub(r"\bconstant (\w+) &", r"const \1 &", text)
    text = re.sub(r"\bconstant (\w+) (\w+)( =|\[)", r"static const \1 \2\3", text)
    text = re.sub(r"\b(kernel|thread) ", "", text)
    if rest := re.search(rf"\b({SPACES}|using namespace)\b.*", text):
        raise KernelError(f"the emulator does not know: {rest[0]}")
    entries = "".join(f"    EMU_ENTRY({name}),\n" for name in kernels)
    digest = hashlib.sha256(source().encode()).hexdigest()
    return (f'#include "msl.h"\nnamespace metal {{\n{text}\n}}\nusing namespace metal;\nconst emu_entry emu_entries[] = {{\n{entries}'
            f'    {{nullptr, nullptr, nullptr}}}};\nconst char emu_source_hash[] = "{digest}";\n')


def _check_attributes(text: str) -> None:
    """The emulator gives a parameter its value by its type and place: the attributes must say the same."""
    for name, params in re.findall(r"\bkernel void (\w+)\((.*?)\) *\{", text, re.S):
        buffers = 0
        for param in re.split(r",\s*", " ".join(params.split())):
            what, attribute = re.fullmatch(r"(.*?) ?\[\[(.*)\]\]", param).groups()
            if what in PARAMETERS:
                assert attribute == PARAMETERS[what], f"{name}: {param}"
            else:
                assert attribute == f"buffer({buffers})" and re.match(rf"({SPACES}) ", what), f"{name}: {param}"
                buffers += 1
        ends = [p.split("[[")[0].strip() for p in params.split(",")[-3:]]
        assert [" ".join(e.split()) for e in ends] == list(PARAMETERS), f"{name} ends with {ends}"


def build(kind: str = "plain", text: str | None = None, *, runtime: bool = False) -> Path:
    """The emulator with the kernels of `text` (default: the project's) as a shared library, with `runtime` as one to preload that stands in
    for Apple's side. Objects are kept between runs as long as nothing changes."""
    if not shutil.which("g++"):
        raise KernelError("g++ is needed\nhint: apt install g++")
    folder = Path(os.environ.get("PYLLM_METAL_CACHE") or Path(tempfile.gettempdir()) / f"pyllm-metal-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shim = [(SHIM / name).read_text() for name in (("emulator.cpp", "runtime.cpp") if runtime else ("emulator.cpp",))]
    own = [flag for flag in FLAGS[kind] if flag != "-fsanitize=thread"] + (["-DEMU_TSAN", "-fno-builtin"] if kind == "thread" else [])
    objects = [_object(folder, code, own) for code in shim]
    objects.append(_object(folder, translate(source() if text is None else text), FLAGS[kind]))
    library = folder / f"{hashlib.sha256(' '.join(map(str, objects)).encode()).hexdigest()[:24]}.so"
    if not library.exists():
        _make(library, ["g++", "-shared", *FLAGS[kind], *map(str, objects)])
    return library


def _object(folder: Path, code: str, flags: Sequence[str]) -> Path:
    command = ["g++", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas", f"-I{SHIM}", *flags, "-c"]
    headers = [(SHIM / name).read_text() for name in ("msl.h", "emulator.h")]
    made = folder / f"{hashlib.sha256(chr(0).join([code, *headers, *command]).encode()).hexdigest()[:24]}.o"
    if not made.exists():
        with tempfile.NamedTemporaryFile("w", suffix=".cpp") as f:
            f.write(code)
            f.flush()
            _make(made, [*command, f.name])
    return made


def _make(path: Path, command: Sequence[str]) -> None:
    """Whole or not at all: other processes look for it."""
    temporary = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
    done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(done.stderr)
    temporary.replace(path)


class Emulator:
    """Kernels by name over numpy arrays."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.emu_name.restype = ctypes.c_char_p

    def names(self) -> list[str]:
        names: list[str] = []
        while name := self.lib.emu_name(len(names)):
            names.append(name.decode())
        return names

    def launch(self, name: str, args: bytes, buffers: Sequence[np.ndarray[Any, Any]], grid: tuple[int, int, int], threads: int,
               schedule: int = 0) -> None:
        """Buffers are read and written in place. Raises KernelError with what the emulator found."""
        first = ctypes.create_string_buffer(args, len(args))
        assert all(b.flags.c_contiguous for b in buffers)
        pointers = (ctypes.c_void_p * (len(buffers) + 1))(ctypes.addressof(first), *(b.ctypes.data for b in buffers))
        sizes = (ctypes.c_size_t * (len(buffers) + 1))(len(args), *(b.nbytes for b in buffers))
        error = ctypes.create_string_buffer(600)
        size = (ctypes.c_uint32 * 3)(*grid)
        if self.lib.emu_launch(name.encode(), pointers, sizes, size, threads, schedule, error, ctypes.c_size_t(600)):
            raise KernelError(error.value.decode())
