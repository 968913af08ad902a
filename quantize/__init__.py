"""Quantizes models: from a source of float tensors to a GGUF file, with a recipe of types and a receipt of what was done.

    from pyllm.quantize import quantize
    quantize("model-F16.gguf", "model-Q4_K_M.gguf", "Q4_K_M")
"""

from .convert import convert as convert
from .quantizer import Plan as Plan
from .quantizer import Result as Result
from .quantizer import plan_file as plan_file
from .quantizer import quantize as quantize
from .recipes import Options as Options
from .recipes import Target as Target
