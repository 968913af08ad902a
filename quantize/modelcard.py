"""What a checkpoint says about itself outside of its weights: name, size, licence, languages, sampling defaults, as general.* keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm import errors

from .folder import Folder

MAX_CARD = 1 << 20          # characters of a README.md's head
# Options of generation_config.json, and their GGUF keys.
SAMPLING = {"temperature": ("temp", float), "top_k": ("top_k", int), "top_p": ("top_p", float), "min_p": ("min_p", float),
            "repetition_penalty": ("penalty_repeat", float)}


def fields(folder: Folder, config: Mapping[str, Any], name: str | None, n_params: int | None) -> dict[str, Any]:
    """general.* keys, without those of the architecture. name: a name to use instead of the checkpoint's; n_params: how many weights."""
    card = _head(folder)
    found: dict[str, Any] = {"type": "model", "name": name or _name(folder, config, card)}
    if n_params:
        found["size_label"] = size_label(n_params)
    for key, entry in (("license", "license"), ("license.name", "license_name"), ("license.link", "license_link")):
        if isinstance(card.get(entry), str):
            found[key] = card[entry]
    for key, entries in (("tags", ("tags", "pipeline_tag")), ("languages", ("language",)), ("datasets", ("datasets",))):
        texts = list(dict.fromkeys(text for entry in entries for text in _texts(card.get(entry))))
        if texts:
            found[key] = texts
    found |= _base_models(_texts(card.get("base_model")))
    generation = folder.json("generation_config.json") or {}
    for option, (key, kind) in SAMPLING.items():
        value = generation.get(option)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
            found[f"sampling.{key}"] = kind(value)
    return {f"general.{key}": value for key, value in found.items()}


def size_label(n_params: int) -> str:
    """135M, 1.5B, 70B."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n_params >= unit:
            digits = f"{n_params / unit:.1f}" if n_params < 10 * unit and letter in "TB" else f"{n_params / unit:.0f}"
            return digits.removesuffix(".0") + letter
    return str(n_params)


def _name(folder: Folder, config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    for text in (card.get("model_name"), config.get("_name_or_path"), config.get("_model_name_or_path")):
        if isinstance(text, str) and text.strip("./"):
            return text.rstrip("/").rpartition("/")[2]
    return folder.path.resolve().name


def _base_models(names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"base_model.count": len(names)} if names else {}
    for i, repo in enumerate(names):
        owner, _, name = repo.rpartition("/")
        found[f"base_model.{i}.name"] = name
        if owner:
            found[f"base_model.{i}.organization"] = owner
            found[f"base_model.{i}.repo_url"] = f"https://huggingface.co/{repo}"
    return found


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def _head(folder: Folder) -> dict[str, Any]:
    """The YAML between the first two lines of dashes in README.md; a head that cannot be read says nothing."""
    import yaml  # gguf brings it

    try:
        text = folder.text("README.md") or ""
    except errors.FormatError:
        return {}
    lines = text[:MAX_CARD].splitlines()
    if "---" not in lines[1:] or lines[0] != "---":
        return {}
    try:
        head = yaml.safe_load("\n".join(lines[1:lines.index("---", 1)]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}
