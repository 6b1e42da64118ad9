"""What README and docs say holds: every command parses, every link leads somewhere.

Commands stand in fenced `console` blocks behind a `$ ` prompt; a backslash at the end continues a line.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Other programs that a page may call. Whatever else stands behind a prompt is a mistake or needs a test.
FOREIGN = {"git", "cd", "pip", "python", "python3", "tensorboard", "export", "."}
NO_CLI = importlib.util.find_spec("mednca.cli") is None


def commands() -> list[tuple[str, list[str]]]:
    """All pages -> (page:line, words) of each command."""
    found = []
    for page in PAGES:
        inside, command, start = False, "", 0
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip().startswith("```"):
                inside = line.strip() == "```console"
            elif inside and (command or line.strip().startswith("$ ")):
                start = start if command else number
                command += line.strip().removeprefix("$ ") if not command else " " + line.strip()
                if command.endswith("\\"):
                    command = command[:-1].rstrip()
                    continue
                where = f"{page.relative_to(ROOT).as_posix()}:{start}"
                found.append((where, shlex.split(command, comments=True)))
                command = ""
    return found


def words_of(*programs: str) -> list[object]:
    """Names of programs -> a test parameter for each command that calls one of them."""
    return [
        pytest.param(words, id=f"{where} {' '.join(words)}")
        for where, words in commands()
        if words[0] in programs
    ]


@cache
def help_of(*subcommand: str) -> str:
    """Words of a sub-command -> what `mednca ... --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mednca", *subcommand, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"mednca {' '.join(subcommand)} --help: {done.stderr}"
    return done.stdout


def options_of(text: str) -> set[str]:
    """Text of a help page -> the options that it names."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


@pytest.mark.skipif(NO_CLI, reason="the command line (mednca.cli) is not written yet")
@pytest.mark.parametrize("words", words_of("mednca"))
def test_a_mednca_command_of_the_docs_parses(words: list[str]) -> None:
    options = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word)}
    if words[1].startswith("-"):
        assert options <= options_of(help_of()) | {"--help"}
        return
    assert words[1] in help_of(), f"there is no command {words[1]!r}"
    assert options <= options_of(help_of(words[1])) | {"--help"}


@pytest.mark.skipif(NO_CLI, reason="the command line (mednca.cli) is not written yet")
def test_the_reference_has_every_option_of_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## mednca ([\w-]+)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    for name, section in sections.items():
        missing = options_of(help_of(name)) - options_of(section) - {"-h", "--help"}
        # The other half of a switch (--no-...) and a short form go without saying.
        missing = {option for option in missing if option.startswith("--") and not option.startswith("--no-")}
        assert not missing, (
            f"docs/reference/cli.md does not tell of mednca {name} {', '.join(sorted(missing))}"
        )


@pytest.mark.parametrize("words", words_of("make"))
def test_a_make_command_of_the_docs_has_its_target(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.M))
    variables = set(re.findall(r"^([A-Z]+) :=", makefile, flags=re.M))
    for word in words[1:]:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"the Makefile has no {name}"


def test_pages_call_only_programs_that_are_checked_or_known() -> None:
    unknown = [
        f"{where}: {words[0]}" for where, words in commands() if words[0] not in FOREIGN | {"mednca", "make"}
    ]
    assert not unknown
    assert any(words[0] == "make" for _, words in commands()), "no command found: is the pattern still right?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}: no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, f"docs/index.md does not name {name}"
