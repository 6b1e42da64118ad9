"""The robust recipe: a plan, prepared for scans that are not like those of its training.

Faults of a scan that cannot be undone are learnt, from copies of the training scans that have them
(`mednca.artefacts`). Bias fields (`mednca.field`), sizes of the organ (`mednca.second_look`), lines of
k-space (`mednca.spectrum`) and distances of slices (`mednca.coarse`) that no training scan has are brought
back to what is usual. Slices go on beyond their ends as they do on the canvas of training. No torch here, as
in the planner.
"""

from __future__ import annotations

from dataclasses import replace

from mednca.config import AugmentConfig
from mednca.cost import copy_bytes, cost_of
from mednca.plan import Choice, Plan, within

#: Share of the slices that are taken from copies with artefacts.
ARTEFACTS = 0.3
#: Copies are kept in memory: there are no more of each scan than fit in so many bytes, but at least one.
COPIES_BYTES = 4e9
#: Pixels by which slices go on beyond their ends. Without, an organ at the end of a scan is lost more often;
#: more brings no more. Slices stretched to one size fill their canvas, and a model that has never seen them
#: go on does worse with a margin.
MARGIN = 6


def hardened(made: Plan) -> Plan:
    """Plan -> the same prepared for fields, sizes, lines and artefacts, with the reasons, and its cost."""
    config = made.config
    data = within(made.data, config.preprocess.roi)
    stretched = config.preprocess.size is not None
    margin = 0 if stretched else MARGIN
    most = int(COPIES_BYTES / max(1.0, copy_bytes(config, data)))
    copies = min(AugmentConfig.copies, max(1, most))
    config = replace(
        config,
        recipe=config.recipe.replace("native", "robust"),
        preprocess=replace(config.preprocess, field=(), margin=margin),
        augment=replace(config.augment, artefacts=ARTEFACTS, copies=copies),
        predict=replace(config.predict, sizes=(), spectrum=(), coarse=()),
    )
    choices = (
        Choice(
            "artefacts",
            f"{ARTEFACTS:.0%} of the slices",
            f"of {copies} copies of each scan with ghosts, noise, blur and other faults: they are learnt"
            + ("; more would need much memory" if copies < AugmentConfig.copies else ""),
        ),
        Choice(
            "unusual",
            "brought back",
            "fields, sizes of the organ, lines of k-space and coarse voxels that no training scan has",
        ),
        Choice(
            "margin",
            f"{margin} pixels",
            "slices fill the canvas: a margin would be new to the model"
            if stretched
            else "slices go on beyond their ends as on the canvas: an organ there is seen better",
        ),
    )
    return replace(made, config=config, choices=made.choices + choices, cost=cost_of(config, data))
