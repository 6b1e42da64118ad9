"""The C engine, bound: a model file's bytes and the voxels of a scan in, a mask out.

    model.py      a model, opened; what it does to a scan, or to the state of a level
    binding.py    the library of runtime/c, its structures and functions; whether it is there
    arrays.py     where an array lies in memory
    threads.py    how slices are shared out among threads

NumPy is not imported.
"""

from mednca.engine.binding import NUMBERS, available, has_bfloat16, instructions, why_not
from mednca.engine.model import Model, largest_component, surest_component

__all__ = [
    "NUMBERS",
    "Model",
    "available",
    "has_bfloat16",
    "instructions",
    "largest_component",
    "surest_component",
    "why_not",
]
