"""Quantizes models: from a source of float tensors to a GGUF file, with a recipe of types and a receipt of what was done."""
