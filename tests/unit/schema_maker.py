"""Random JSON schemas of mixed size, by seed: what people write, from one enum to nested records with references."""

from __future__ import annotations

import random
from typing import Any

NAMES = """id name title age email address city country price amount currency quantity date status score rating tags items notes comment
summary author year pages language priority due owner members width height depth weight colour size kind enabled active count total url
phone start end location latitude longitude ingredients steps minutes servings question answer options reason source target"""
WORDS = "low medium high red green blue open closed pending done north south east west small large new used monthly yearly"
KINDS = "string string string bounded pattern format integer range number boolean enum const nullable"
FORMATS = ("date", "time", "date-time", "email", "ipv4", "uuid")
PATTERNS = (r"^[A-Z]{3}$", r"^\d{3}-\d{4}$", r"^[a-z][a-z0-9_]{0,15}$", r"^(\+\d{1,3} )?\d{6,10}$", r"^v\d+\.\d+$")


class Maker:
    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.defs: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        """One schema: 1 to about 40 properties in up to 4 levels."""
        size = self.r.choice((1, 2, 3, 5, 8, 12, 20, 40))
        made = self.leaf() if size == 1 else self.record(size, 3)
        return {**made, **({"$defs": self.defs} if self.defs else {})}

    def leaf(self) -> dict[str, Any]:
        r = self.r
        kind = r.choice(KINDS.split())
        return {
            "string": lambda: {"type": "string"},
            "bounded": lambda: {"type": "string", "minLength": r.randint(0, 3), "maxLength": r.randint(5, 60)},
            "pattern": lambda: {"type": "string", "pattern": r.choice(PATTERNS)},
            "format": lambda: {"type": "string", "format": r.choice(FORMATS)},
            "integer": lambda: {"type": "integer"},
            "range": lambda: {"type": "integer", "minimum": r.randint(-50, 0), "maximum": r.randint(1, 5000)},
            "number": lambda: {"type": "number", **r.choice(({}, {"minimum": 0}, {"minimum": -90, "maximum": 90}))},
            "boolean": lambda: {"type": "boolean"},
            "enum": lambda: {"enum": r.sample(WORDS.split(), r.randint(2, 6))},
            "const": lambda: {"const": r.choice((1, "v1", True, None))},
            "nullable": lambda: {"anyOf": [{"type": r.choice(("string", "integer"))}, {"type": "null"}]},
        }[kind]()

    def record(self, size: int, depth: int) -> dict[str, Any]:
        r, left = self.r, size
        properties: dict[str, Any] = {}
        for name in r.sample(NAMES.split(), size):
            if left <= 0:
                break
            part = r.randint(1, max(1, left // 2)) if depth else 1
            left -= part
            properties[name] = self.value(part, depth - 1)
        required = [n for n in properties if r.random() < 0.8]
        return {"type": "object", "properties": properties, "required": required,
                **r.choice(({}, {"additionalProperties": False}, {"additionalProperties": False}))}

    def value(self, size: int, depth: int) -> dict[str, Any]:
        r = self.r
        if size < 2 or depth < 0:
            return self.leaf() if r.random() < 0.8 else self.array(self.leaf())
        made = self.record(size, depth)
        choice = r.random()
        if choice < 0.2:
            return self.array(made)
        if choice < 0.35:
            name = f"Part{len(self.defs)}"
            self.defs[name] = made
            return {"$ref": f"#/$defs/{name}"}
        if choice < 0.45:
            return {"anyOf": [made, {"type": "null"}]}
        return made

    def array(self, items: dict[str, Any]) -> dict[str, Any]:
        least = self.r.choice((0, 0, 1, 2))
        return {"type": "array", "items": items, **self.r.choice(({}, {"minItems": least}, {"minItems": least, "maxItems": least + 3}))}
