"""Fetching from the Hugging Face hub, by its own client (pip install 'pyllm[hub]') into its own cache, where others find it too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from . import errors, stores
from .stores import RepoSpec

Progress = Callable[[int, int], None]


def fetch(spec: RepoSpec, progress: Progress | None = None) -> Path:
    """The model's file, of a split set the first one, fetched where the cache does not have it in the hub's current version.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and the client's other settings hold. Raises ModelNotFound or DownloadError.
    """
    def wanted(sizes: dict[str, int]) -> list[str]:
        models = {name: size for name, size in sizes.items() if name.lower().endswith(".gguf")}
        return stores.parts(_choose(spec, models))

    return _download(spec.repo, wanted, progress)


def fetch_checkpoint(repo: str, progress: Progress | None = None) -> Path:
    """The folder of a checkpoint in the hub's cache, all its files fetched where they are not there in the current version: weights (as
    safetensors where there are some), tokenizer, tables and texts. Raises ModelNotFound or DownloadError."""

    def wanted(sizes: dict[str, int]) -> list[str]:
        weights = [n for n in sizes if re.fullmatch(r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors", n)]
        weights = weights or [n for n in sizes if re.fullmatch(r"(pytorch|adapter)_model(-\d+-of-\d+)?\.bin", n)]
        if not {"config.json", "adapter_config.json"} & sizes.keys() or not weights:
            raise errors.ModelNotFound(f"{repo} holds no checkpoint in Hugging Face's form (config.json and safetensors)\n"
                                       "hint: look at its files; a repository of GGUF files needs no conversion: pyllm run it")
        texts = [n for n in sizes if "/" not in n.removeprefix("additional_chat_templates/") and n.endswith((".json", ".jinja", ".md"))]
        return sorted(texts, key=lambda n: "/" in n) + [n for n in sizes if n == "tokenizer.model"] + weights

    return _download(repo, wanted, progress).parent


def _download(repo: str, wanted: Callable[[dict[str, int]], list[str]], progress: Progress | None) -> Path:
    """Fetches files of a repository, chosen by wanted(bytes of every file by name), and returns the path of the first."""
    try:
        import huggingface_hub
    except ImportError:
        raise errors.DownloadError(f"{repo} is not on this machine, and fetching from the hub needs a package that is missing\n"
                                   "hint: pip install 'pyllm[hub]'") from None
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        files = wanted(sizes)
        total = sum(sizes.get(f, 0) for f in files)
        _check_room(total)
        done, first = 0, ""
        for file in files:
            path = huggingface_hub.hf_hub_download(repo, file, tqdm_class=_bar(progress, done, total))
            first = first or path
            done += sizes.get(file, 0)
            if progress is not None:
                progress(done, max(done, total))
        return Path(first)
    except errors.Error:
        raise
    except Exception as e:      # the client's own errors, those of its HTTP library, and the system's
        raise _explained(repo, e) from e


def _choose(spec: RepoSpec, sizes: dict[str, int]) -> str:
    models = {name: sum(sizes.get(part, 0) for part in stores.parts(name)) for name in sizes if stores.is_model(name)}
    if not models:
        raise errors.ModelNotFound(f"{spec.repo} holds no GGUF file\nhint: its GGUF conversion is usually in a repository of its own, "
                                   "often with -GGUF in the name")
    name = spec.file if spec.file in models else None if spec.file else stores.pick(models, spec.quant)
    if name is None:
        known = ", ".join(sorted({stores.quant_of(n) or n for n in models}))
        raise errors.ModelNotFound(f"{spec.repo} has no {spec.file or spec.quant}\nhint: it has {known}")
    missing = [part for part in stores.parts(name) if part not in sizes]
    if missing:
        raise errors.ModelNotFound(f"{spec.repo} lacks {missing[0]}, a part of {name}\nhint: choose another quantization")
    return name


def _check_room(total: int) -> None:
    folder = stores.hub_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < total:
        raise errors.DownloadError(f"{stores.hub_dir()} has {free // 10**6} MB free, the model takes {total // 10**6} MB\n"
                                   "hint: free some space, or set HF_HOME to another disk")


def _bar(progress: Progress | None, before: int, total: int) -> type:
    """What the client takes for a progress bar: calls progress with the bytes of all files so far.

    Xet downloads report the bytes written, and with update_transfer those that came over the network; a class without it gets a second
    bar for them, which would count every byte twice.
    """

    class Bar:
        def __init__(self, *_: object, initial: int = 0, total: int | None = None, **__: object) -> None:
            self.n, self.total = initial, total

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if progress is not None:
                progress(min(before + self.n, total), total)

        def nothing(self, *_: object, **__: object) -> None:
            pass

        update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close = __exit__ = nothing

        def __enter__(self) -> Bar:
            return self

    return Bar


def _explained(repo: str, e: Exception) -> errors.FileError:
    kinds = {kind.__name__ for kind in type(e).__mro__}
    said = (str(e).strip().splitlines() or [type(e).__name__])[0]
    if "GatedRepoError" in kinds:
        return errors.DownloadError(f"{repo} is gated: its owner grants access\n"
                                    "hint: accept its terms on its page, then set HF_TOKEN or run `hf auth login`")
    if "RepositoryNotFoundError" in kinds:
        return errors.ModelNotFound(f"the hub has no repository {repo}, or it is private\n"
                                    "hint: check the name; for a private one set HF_TOKEN or run `hf auth login`")
    if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return errors.DownloadError(f"{repo} is not on this machine, and the hub is not to be reached: {said}\n"
                                    "hint: unset HF_HUB_OFFLINE and check the network, or give the path of a GGUF file")
    return errors.DownloadError(f"{repo} cannot be fetched: {said}\nhint: check the network (and HF_ENDPOINT, if it is set)")
