"""Training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.config import RunConfig
    from mednca.fingerprint import Fingerprint
    from mednca.plan import Plan


@dataclass(frozen=True)
class Train:
    """Train a model on a folder of labelled scans and judge it on scans that it never saw.

    DATA is in MSD layout (dataset.json, imagesTr, labelsTr), nnU-Net raw layout, a pair of folders images/
    and labels/, or made by 'mednca data join'. RUN becomes a run folder with the model (model.safetensors),
    its report, its curve and all that is needed to go on after a stop.

    Examples:
        mednca train Task04_Hippocampus -o runs/hippocampus --group pairs
        mednca train Task04_Hippocampus -o runs/hippocampus_cv --group pairs --folds 5
        mednca train Task04_Hippocampus -o runs/hippocampus --group pairs --resume
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="RUN")]
    """Run folder to make; with --folds the folder of its runs."""
    recipe: str = "robust"
    """robust (ours, planned from the data and prepared for scans unlike them), native (the plan alone, for
    scans like those of training), quick (lean, for a first look), paper_hippocampus or paper_prostate (the
    paper's)."""
    budget: Annotated[Literal["pi", "laptop", "best"] | None, arg(help_behavior_hint="(default: best)")] = (
        None
    )
    """What robust and native may spend: pi (at most 20,000 parameters, lean), laptop or best; see 'mednca
    plan'."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the recipe alone)")] = (
        None
    )
    """JSON file of settings that replace the recipe's, as {"train": {"patch": 48}}; see 'mednca info'."""
    init: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: the plan's choice)")] = (
        None
    )
    """Begin with the rules of this model (run folder, file or shipped model) instead of random weights; none
    begins with random weights. It must not have seen the scans that are held out."""
    labels: Literal["merged", "separate"] = "merged"
    """One class for all labels (the recipes' way) or one for each."""
    iterations: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Steps of the optimiser."""
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Slices per step."""
    learning_rate: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: the recipe's)")] = (
        None
    )
    """Peak learning rate."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Of everything random: split, weights, samples, augmentation, fire masks."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person, so that no person is on both sides of a split: pairs (numbers 2k-1 and 2k, as in
    MSD Task04), re:PATTERN (its one group, in the case id) or csv:FILE:COLUMN."""
    folds: int = 0
    """Cross-validate with this many folds; 0 keeps one part out."""
    fold: Annotated[int | None, arg(metavar="I", help_behavior_hint="(default: all)")] = None
    """Train this fold only, from 0."""
    validation: float = 0.2
    """Share of the cases that is kept out and reported on; 0 trains on all."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """Way to run the rule: auto, native (C), folded or eager (PyTorch)."""
    resume: bool = False
    """Go on where a stopped training was."""
    force: bool = False
    """Replace an existing run."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Train, and print the table of the held-out cases."""
        from mednca.cases import find_labelled_cases
        from mednca.modelfile import load_model
        from mednca.recipes import PLANNED, check_recipe
        from mednca.train import check_engine, train

        check_recipe(self.recipe, self.budget)
        check_engine(self.device, self.engine)  # refuse before the data are read and a run folder is made
        cases = find_labelled_cases(self.data, self.group)
        report = train(
            cases,
            self.out,
            self.configure,
            explain=self.explain if self.recipe in PLANNED else None,
            begin=None if self.init in (None, "none") else load_model(self.init),
            folds=self.folds,
            fold=self.fold,
            validation=self.validation,
            device=self.device,
            engine=self.engine,
            resume=self.resume,
            force=self.force,
            progress=not self.quiet,
        )
        if report is not None:
            print(report.table())
        print(f"{self.out}: done")
        return 0

    def explain(self, data: Fingerprint) -> Plan:
        """Fingerprint of the data -> what the planner chooses, before the options are put in."""
        from mednca.recipes import planned

        return planned(self.recipe, data, self.budget or "best")

    def configure(self, data: Fingerprint) -> RunConfig:
        """Fingerprint of the data -> the recipe's configuration with the options put in."""
        from mednca.config import RunConfig, from_dict, merged, to_dict
        from mednca.files import read_json
        from mednca.modelfile import load_model
        from mednca.plan import with_fitting_start
        from mednca.recipes import recipe, with_classes

        config = recipe(self.recipe, data, self.budget)
        if self.labels == "separate":
            config = with_classes(config, data.labels)
        if self.config is not None:
            settings = merged(to_dict(config), read_json(self.config), str(self.config))
            config = from_dict(RunConfig, settings, str(self.config))
        names = ("iterations", "batch_size", "learning_rate", "seed")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.init is not None:
            given["init"] = "" if self.init == "none" else load_model(self.init).hash
        try:
            config = replace(config, train=replace(config.train, **given))
        except ValueError as error:
            raise InputError(str(error)) from error
        return config if self.init is not None else with_fitting_start(config)
