"""What the documents say of the tree and of the commands is so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer.main
from test_layering import LAYERS

from phantom_tun.cli.exits import exit_code
from phantom_tun.cli.main import app
from phantom_tun.control.model import WhyReason
from phantom_tun.control.schema import AnyRequest, ControlError, ErrorCode
from phantom_tun.lab.nodes import NodeStatus

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DESIGN = (ROOT / "docs" / "design.md").read_text()

_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_FILE = re.compile(r"`((?:[a-z_]+/)*[a-z_]+\.py)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_files_that_the_design_names_are_there() -> None:
    named = _FILE.findall(DESIGN)
    assert len(named) > 20
    for name in named:
        places = (ROOT / name, ROOT / "phantom_tun" / name)
        assert any(place.exists() for place in places), name


def test_the_layers_of_the_design_are_those_that_are_held() -> None:
    rows = dict(re.findall(r"^\| (\d) \| (.+?) \|", DESIGN, flags=re.M))
    told = {int(number): set(re.findall(r"`([a-z_]+)/?`", names)) for number, names in rows.items()}
    assert told == {number: parts - {"__main__"} for number, parts in LAYERS.items()}


def code_in(text: str) -> Iterator[str]:
    """Lines of code blocks, and what stands between backticks; not what commands print."""
    text = re.sub(r"^```text\n.*?^```\n", "", text, flags=re.M | re.S)
    for number, part in enumerate(re.split(r"^```.*\n", text, flags=re.M)):
        yield from part.splitlines() if number % 2 else re.findall(r"`([^`\n]+)`", part)


def commands_in(text: str) -> Iterator[list[str]]:
    """What ``phantom-tun`` is followed by, word for word."""
    for code in code_in(text):
        for words in code.split("phantom-tun ")[1:]:
            yield re.split(r" (?:[#|>&…]|-- )", f"{words} ")[0].split()


def command_of(words: list[str]) -> Any:
    """The command that these words mean, its arguments left out."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "get_command"):
            return command
        found = command.get_command(None, word)
        assert found is not None or word.startswith("-"), words
        command = found or command
    return command


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "docs" / "lab.md", *sorted((ROOT / "docs" / "spec").glob("*.md"))],
    ids=lambda path: path.name,
)
def test_commands_that_are_named_exist(path: Path) -> None:
    for words in commands_in(path.read_text()):
        command = command_of(words)
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        options = {word for word in words if word.startswith("--")}
        assert options <= known, (words, options - known)


def test_the_readme_names_commands() -> None:
    named = list(commands_in((ROOT / "README.md").read_text()))
    assert ["network", "new", "home", "--hops", "0"] in named
    assert ["expose", "8000"] in named  # behind 'lab exec n12 --'


@pytest.mark.parametrize("words", [["statsu"], ["lab", "upp"], ["paths", "lsit"]])
def test_commands_that_do_not_exist_are_noticed(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        command_of(words)


# --- tables --------------------------------------------------------------------------------------


def column(document: str, first_head: str, number: int = 0) -> list[str]:
    """One column of the table in a document whose first head is this."""
    lines = iter((ROOT / "docs" / document).read_text().splitlines())
    rows = []
    for line in lines:
        if line.startswith(f"| {first_head} |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    return rows
                rows.append(row.split("|")[number + 1].strip())
    raise AssertionError(f"{document} has no table of {first_head}")


def words_in(cells: list[str], pattern: str) -> set[str]:
    return {word for cell in cells for word in re.findall(pattern, cell)}


def test_the_codes_of_the_control_socket_are_those_of_the_document() -> None:
    codes = [code.strip("`") for code in column("spec/control.md", "code")]
    assert set(codes) == set(get_args(ErrorCode))
    told = dict(zip(codes, map(int, column("spec/control.md", "code", 2)), strict=True))
    assert told == {code: int(exit_code(ControlError(code, ""))) for code in get_args(ErrorCode)}


def test_the_requests_of_the_control_socket_are_those_of_the_document() -> None:
    told = {cell.strip("`") for cell in column("spec/control.md", "type")}
    assert told == {kind.__struct_config__.tag for kind in get_args(AnyRequest)}


def test_the_reasons_of_why_are_those_of_the_document() -> None:
    told = words_in(column("spec/control.md", "reason"), "`(.*?)`")
    assert told == set(get_args(WhyReason)) - {""}


def test_the_document_of_the_lab_has_every_field_and_every_option() -> None:
    # No head of its own: the first line of that table is empty.
    text = (ROOT / "docs" / "lab.md").read_text()
    fields = text[text.index("`lab status --json` is a list") : text.index("Messages go to")]
    assert {field.name for field in msgspec.structs.fields(NodeStatus)} == {
        name
        for row in re.findall(r"^\| (`.+?) \|", fields, flags=re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    commands = column("lab.md", "command")
    up = command_of(["lab", "up"])
    options = {name for parameter in up.params for name in parameter.opts} - {"--name", "--help"}
    assert options <= words_in(commands, r"--[a-z-]+")
    group: Any = command_of(["lab"])
    assert set(group.list_commands(None)) == words_in(commands, r"`lab ([a-z]+)")


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("-h", 0), ("--halp", 2)])
def test_setup_says_how_it_is_used(option: str, code: int) -> None:
    command = [str(ROOT / "scripts" / "setup"), option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said, nothing = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert (done.returncode, nothing) == (code, "")
    assert "scripts/setup --test" in said


def test_the_tests_that_the_threats_name_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "threats.md").read_text())
    assert len(named) > 40
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in tests[file]]
    assert not missing
