"""Data that tests share. Small data is in tests/data; larger data comes from $PYLLM_SHARED (default: `shared` beside the checkout),
and real models from the cache: SmolLM2 is fetched when needed, the others by tools/fetch_models.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PYLLM_SHARED") or ROOT.parent / "shared")
MODELS = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3-270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "minilm": "all-MiniLM-L6-v2.safetensors",
}


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What starts a program in the background may make it and its children ignore Ctrl-C: tests that interrupt would wait for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Python puts the current folder first: child processes started in the checkout would import its sources, not what was installed."""
    os.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.fail(f"the test data folder {SHARED} is missing; set PYLLM_SHARED", pytrace=False)
    return SHARED


def model_path(name: str) -> Path:
    from pyllm.catalogue import cache_dir, resolve

    if name == "smollm2":
        return resolve(name)
    path = cache_dir() / MODELS[name]
    if not path.is_file():
        pytest.fail(f"{path} is missing; fetch it with: python tools/fetch_models.py {name}", pytrace=False)
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return model_path("smollm2")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The environment of a build under sanitizers ("thread" or "address,undefined"), made once a session."""
    from variant import build_sanitized

    return cache(lambda sanitizers: build_sanitized(tmp_path_factory.mktemp(sanitizers.replace(",", "-")), sanitizers))
