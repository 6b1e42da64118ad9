"""Head circumference from a mask, in mm: the clinical figure behind HC18, beside the sonographer's.

The circumference is that of the ellipse with the same second moments as the mask's largest piece, which is
what region-property functions of image libraries fit (major and minor axis); the perimeter is exact, by the
complete elliptic integral of SciPy. One formula, so no further dependency."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mednca.cases import Case
from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.modelfile import ModelFile

#: Table in the folder of HC18: case, pixel size in mm, head circumference in mm.
TABLE = "pixel_size_and_HC.csv"


def circumference_mm(mask: NDArray[Any], pixel_mm: float) -> float:
    """Mask (X, Y), non-zero inside, and size of a pixel in mm -> perimeter of the ellipse with its second
    moments; nan for an empty mask."""
    from scipy.special import ellipe

    points = np.argwhere(mask)
    if not len(points):
        return math.nan
    # A pixel is a square, not a point: its own second moment is 1/12 along each axis.
    moments = np.cov(points.T, bias=True) + np.eye(2) / 12
    minor, major = 2 * np.sqrt(np.linalg.eigvalsh(moments))  # half axes: a filled ellipse has moments a² / 4
    return float(4 * major * ellipe(1 - (minor / major) ** 2)) * pixel_mm


def read_table(root: Path) -> dict[str, tuple[float, float]]:
    """Folder of HC18 -> case -> size of a pixel (mm) and the sonographer's circumference (mm).

    Raises:
        InputError: If the table is missing or has other columns.
    """
    try:
        with (root / TABLE).open(newline="", encoding="utf-8") as file:
            return {
                row["case"]: (float(row["pixel_size_mm"]), float(row["head_circumference_mm"]))
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{root / TABLE}: expected columns case, pixel_size_mm, head_circumference_mm; got {error!r}"
        ) from error


def circumferences(model: ModelFile, cases: Sequence[Case], root: Path) -> dict[str, dict[str, float]]:
    """Model, held-out cases and folder of HC18 -> case -> circumference of the predicted mask, of the label,
    and the sonographer's, in mm."""
    from mednca.io import read_case, read_label
    from mednca.predict import Predictor, largest_component

    table, predictor = read_table(root), Predictor(model)
    found = {}
    for case in cases:
        assert case.label is not None
        pixel, reference = table[case.id]
        mask = largest_component(predictor.predict(read_case(case.images)).mask.data[0])
        label = read_label(case.label).data[0]
        found[case.id] = {
            "circumference_mm": circumference_mm(mask[:, :, 0], pixel),
            "label_circumference_mm": circumference_mm(label[:, :, 0], pixel),
            "reference_circumference_mm": reference,
        }
    return found


def errors_mm(cases: dict[str, dict[str, float]], name: str = "circumference_mm") -> dict[str, float]:
    """Case -> scores -> mean signed and mean absolute error of a circumference against the sonographer's,
    over the cases that have one."""
    apart = np.array([row[name] - row["reference_circumference_mm"] for row in cases.values()])
    there = apart[np.isfinite(apart)]
    return {
        "signed_mm": float(there.mean()),
        "absolute_mm": float(np.abs(there).mean()),
        "sd_mm": float(there.std()),
        "cases": int(there.size),
        "missing": int(apart.size - there.size),
    }
