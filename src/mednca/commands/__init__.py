"""The commands: one dataclass each, what the library does under the same names; `cli` runs them.

Fields are options, their docstrings the help. A command imports what it needs when it runs, so that help is
quick and works without the extras.
"""

from __future__ import annotations

from typing import Any

from mednca.commands.bench import Bench
from mednca.commands.data import Doctor, Get, Join, Phantoms
from mednca.commands.models import Calibrate, Export, ImportOfficial, Info
from mednca.commands.nnunet import ExportNnunet
from mednca.commands.plan import Plan
from mednca.commands.predict import Evaluate, Predict
from mednca.commands.robustness import Robustness
from mednca.commands.train import Train
from mednca.commands.trust import Trust

#: Name on the command line, one word or two -> command.
COMMANDS: dict[str, type[Any]] = {
    "plan": Plan,
    "train": Train,
    "trust": Trust,
    "predict": Predict,
    "evaluate": Evaluate,
    "robustness": Robustness,
    "info": Info,
    "export": Export,
    "calibrate": Calibrate,
    "bench": Bench,
    "doctor": Doctor,
    "phantoms": Phantoms,
    "data get": Get,
    "data join": Join,
    "data export-nnunet": ExportNnunet,
    "import-official": ImportOfficial,
}
