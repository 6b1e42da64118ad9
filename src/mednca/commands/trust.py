"""What may be expected of a mask: a trust score, fitted to held-out cases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.modelfile import ModelFile
    from mednca.predict import Predictor
    from mednca.trust.table import Row


@dataclass(frozen=True)
class Trust:
    """Add to a model what tells how far a mask may be trusted: the Dice to expect, with an interval, and why.

    After a cross-validation: every fold's model predicts cases that it has not seen, as they are and
    perturbed, and a score is fitted to how right it was. It is judged on persons that it has not seen, and
    stored in a copy of MODEL, which 'mednca predict' then uses. Weights and hash stay as they are.

    Predictions are kept beside OUT in a table; the same command goes on where it was stopped. Needs the extra
    'robustness' (TorchIO).

    Examples:
        mednca trust runs/hippocampus Task04_Hippocampus --folds runs/hippocampus_cv --group pairs -o trusted.safetensors
    """  # noqa: E501

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model, to be given the score."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set that the folds were trained on."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Model file to write; OUT.json, beside it, tells how good the score is, OUT.jsonl is the table."""
    folds: Annotated[Path | None, arg(metavar="RUNS", help_behavior_hint="(default: MODEL)")] = None
    """Folder of fold runs of the same recipe; of a single run its held-out cases are used."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person: the score is fitted and judged by persons. See 'mednca train --help'."""
    people: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use the scans of so many persons only, drawn by --seed."""
    perturbations: int = 8
    """Perturbed predictions for each case, beside the case as it is and an image without any organ."""
    coverage: float = 0.9
    """How often an interval is to hold the true Dice."""
    below: float = 0.8
    """Dice under which a mask counts as bad, where the score is judged."""
    seed: int = 0
    """Draws persons and perturbations, and deals persons into parts."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """As for 'mednca predict'."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per processor)")] = None
    """Threads of native and int16; the result does not depend on it."""
    force: bool = False
    """Replace an existing model file; the table is gone on with."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Predict, fit, judge, write, and print how good the score is."""
        from mednca.files import atomic_write
        from mednca.modelfile import load_model, save_model
        from mednca.trust import fit as fitting
        from mednca.trust import report as reporting

        self.check()
        model = load_model(self.model)
        rows, name = self.table(model)
        options: dict[str, Any] = {
            "coverage": self.coverage,
            "ensemble": model.config.predict.ensemble,
            "seed": self.seed,
        }
        report = reporting.report(rows, below=self.below, progress=self.bar("fits"), **options)
        report["provenance"] |= {"data": name, "model": str(self.model), "model_hash": model.hash}
        score = fitting.fit(rows, **options)
        card = model.card | {"trust": reporting.short(report)}
        save_model(self.out, replace(model, trust=score, card=card), force=self.force)
        atomic_write(self.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
        print(reporting.summary(report))
        print(f"{self.out}: done")
        return 0

    def check(self) -> None:
        """Refuse what cannot be, before anything is computed."""
        from mednca.perturb import require_torchio

        if self.out.suffix != ".safetensors":
            raise InputError(f"{self.out}: the ending must be .safetensors")
        if self.out.exists() and not self.force:
            raise InputError(f"{self.out}: exists already; choose another name or give --force")
        for option, value in (("--people", self.people), ("--perturbations", self.perturbations)):
            if value is not None and value < 1:
                raise InputError(f"{option} must be at least 1, got {value}")
        for option, share in (("--coverage", self.coverage), ("--below", self.below)):
            if not 0 < share < 1:
                raise InputError(f"{option} must be between 0 and 1, got {share:g}")
        require_torchio()

    def table(self, model: ModelFile) -> tuple[list[Row], str]:
        """Model -> the rows of its fold models, predicted where they were missing, and the name of the
        data."""
        from mednca.cases import find_labelled_cases
        from mednca.dataset import unmeasured
        from mednca.modelfile import find_model, load_model
        from mednca.perturb import find
        from mednca.predict import Predictor
        from mednca.trust.table import draw_jobs, held_out, measure

        data = find_labelled_cases(self.data, self.group)
        folds = self.folds or find_model(self.model).parent
        parts = held_out(folds, data.cases, people=self.people, seed=self.seed)

        def make(path: Path) -> Predictor:
            file = load_model(path)
            for what in ("model", "preprocess", "predict", "labels"):
                ours, theirs = (getattr(unmeasured(one.config), what) for one in (model, file))
                if ours != theirs:
                    raise InputError(
                        f"{path}: must be trained as {self.model}, but its {what} is another ({theirs}, not "
                        f"{ours}); give the folds of the same recipe"
                    )
            return Predictor(
                file, self.device, engine=self.engine, threads=self.threads, probability=True, trust=False
            )

        for part in parts:
            make(part.model)
        rows = measure(
            parts,
            lambda case: draw_jobs(case.id, find(), self.perturbations, seed=self.seed),
            self.out.with_suffix(".jsonl"),
            make=make,
            progress=self.bar("predictions"),
        )
        return [row for row in rows if row.counts], data.name

    def bar(self, unit: str) -> Any:
        """Unit -> what wraps a list to show a progress bar on stderr."""
        from tqdm import tqdm

        def wrap(items: Sequence[Any]) -> Iterable[Any]:
            wrapped: Iterable[Any] = tqdm(items, unit=f" {unit}", disable=True if self.quiet else None)
            return wrapped

        return wrap
