"""The command line: words in, one command run, an exit status out.

Results go to stdout, progress and messages to stderr. A mistake that a user can mend is one line and exit
status 2.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence

import tyro
from tyro.conf import FlagCreatePairsOff

from mednca import __version__
from mednca.commands import COMMANDS
from mednca.errors import InputError

#: What belongs to an extra, by the name that is imported.
EXTRAS = {
    "torch": "train",
    "scipy": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "surface_distance": "train",
    "SimpleITK": "formats",
    "PIL": "formats",
    "tifffile": "formats",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pooch": "data",
    "requests": "data",
    "segmentation_models_pytorch": "baselines",
    "torchvision": "baselines",
    "torchio": "robustness",
}
ABOUT = "Medical image segmentation that runs anywhere: neural cellular automata (Med-NCA)."


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments (default: the process's) -> the command, then exit: 0 done, 1 findings, 2 a mistake to
    mend."""
    logging.basicConfig(level=logging.WARNING, format="mednca: %(message)s", stream=sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    stopped = "what was not finished was not written"
    if words[:1] == ["train"]:
        stopped = "a training goes on with --resume"
    if words[:1] in (["robustness"], ["trust"]):
        stopped = "the same command goes on where it was"
    if words[:2] == ["data", "get"]:
        stopped = "the same command goes on with what has arrived"
    sys.exit(guarded(lambda: run(words), stopped))


def guarded(run: Callable[[], int], stopped: str = "a training goes on with --resume") -> int:
    """Run a command -> its exit status: its own; 2 and one line on stderr for a mistake that a user can mend;
    130 and what to do now for an interrupt."""
    try:
        return run()
    except InputError as error:
        print(f"mednca: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        extra = EXTRAS[module]
        print(
            f"mednca: error: {module} is needed and not installed; pip install 'mednca[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `mednca info hippocampus | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        print(f"mednca: error: {error.filename or 'disk'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mednca: stopped; {stopped}", file=sys.stderr)
        return 130


def run(words: Sequence[str]) -> int:
    """Words of the command line -> the command run, and its exit status."""
    name = next((two for two in [" ".join(words[:2])] if two in COMMANDS), words[0] if words else "")
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"mednca {__version__}")
        return 0
    group = [kind for kind in COMMANDS if kind.split()[0] == name and kind != name]
    if group and (words[1:] == [] or words[1] in ("-h", "--help")):
        print(overview(name))
        return 0
    if name not in COMMANDS:
        if group:
            raise InputError(f"there is no command '{name} {words[1]}'; choose one of {', '.join(group)}")
        got = f"there is no command {name!r}" if name else "a command is missing"
        raise InputError(f"{got}; choose one of {', '.join(COMMANDS)}, or see mednca --help")
    # tyro reads the descriptions of the options off the class, but drops the examples of its docstring.
    text = inspect.cleandoc(COMMANDS[name].__doc__ or "")
    given = words[len(name.split()) :]
    if "anytime" in getattr(COMMANDS[name], "__dataclass_fields__", {}):
        given = with_patience(given)
    command = tyro.cli(
        COMMANDS[name],
        prog=f"mednca {name}",
        description=text,
        args=list(given),
        config=(FlagCreatePairsOff,),
    )
    status: int = command.run()
    return status


def with_patience(words: Sequence[str]) -> list[str]:
    """Words -> the same, with the usual number after an --anytime that has none."""
    if "--anytime" not in words:
        return list(words)
    from mednca.signals import PATIENCE

    found: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        found += (
            [word, str(PATIENCE)] if word == "--anytime" and not re.fullmatch(r"[-+]?\d+", after) else [word]
        )
    return found


def overview(group: str = "") -> str:
    """The text of `mednca --help`, or of `mednca GROUP --help`: a line for each command (of the group)."""
    lines = [f"usage: mednca {group + ' ' if group else ''}COMMAND ...", "", ABOUT, "", "Commands:"]
    chosen = {name: kind for name, kind in COMMANDS.items() if not group or name.split()[0] == group}
    for name, kind in chosen.items():
        first = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
        indent = " " * 21
        lines.append(textwrap.fill(first, 96, initial_indent=f"  {name:19}", subsequent_indent=indent))
    if not group:
        lines += ["", "Example:", "  mednca predict hippocampus scan.nii.gz -o mask.nii.gz"]
    lines += ["", "'mednca COMMAND --help' tells its options; 'mednca --version' the version."]
    return "\n".join(lines)
