"""What the sentence-transformers files beside a checkpoint say: how its rows become one vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyllm import errors

from .folder import Folder
from .stored import Stored

# Their names of what is pooled, and GGUF's pooling_type.
_KINDS = {"mean": 1, "mean_tokens": 1, "cls": 2, "cls_token": 2, "lasttoken": 3}


def fields(folder: Folder) -> dict[str, Any]:
    """Keys of GGUF (without prefix); none if there are no such files. Raises UnsupportedModel for what no key says."""
    for path in modules(folder, "Pooling"):
        config = folder.json(f"{path}/config.json") or {}
        kinds = [key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        kinds = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else kinds
        if len(kinds) != 1 or kinds[0] not in _KINDS:
            raise errors.UnsupportedModel(f"{folder.path}/{path}: pooling by {' and '.join(kinds) or 'nothing'} cannot be converted\n"
                                          "hint: the mean, the first and the last token can")
        return {"pooling_type": _KINDS[kinds[0]]}
    return {}


def dense(folder: Folder) -> dict[str, Stored]:
    """The matrices that a pooled vector goes through, named dense_2.weight, dense_3.weight. Raises UnsupportedModel for more than that."""
    found: dict[str, Stored] = {}
    for i, path in enumerate(modules(folder, "Dense"), 2):
        config = folder.json(f"{path}/config.json") or {}
        weights = folder.weights_of(f"{path}/model.safetensors")
        if not str(config.get("activation_function", "")).endswith("Identity") or weights.keys() != {"linear.weight"}:
            raise errors.UnsupportedModel(f"{folder.path}/{path}: a layer with bias or activation behind the pooling cannot be converted\n"
                                          "hint: a matrix alone can")
        found[f"dense_{i}.weight"] = weights["linear.weight"]
    return found


def modules(folder: Folder, kind: str) -> Iterator[str]:
    """Folders of modules.json's modules of a kind, in their order."""
    for module in folder.array("modules.json"):
        path = module.get("path") if isinstance(module, Mapping) else None
        if isinstance(path, str) and path and ".." not in path and str(module.get("type")).endswith(f".{kind}"):
            yield path
