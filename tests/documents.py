"""Markdown read for the tests of README and manual: blocks, commands, links, names."""

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
Command = list[str]


class Block(NamedTuple):
    """A code block: where it is, its language, and the comment right before it."""

    document: str
    line: int  # of its first line of code, from 1
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    """The fenced and the indented code blocks; the latter are taken for shell."""
    lines = [*(ROOT / document).read_text().splitlines(), ""]
    parsed, i = [], 0
    while i < len(lines):
        if fence := re.fullmatch(r"```(\w*)", lines[i]):
            begin, language = i + 1, fence[1]
            end = lines.index("```", begin)
        elif lines[i].startswith("    ") and not lines[i - 1]:
            begin, language = i, "sh"
            end = next(j for j in range(i, len(lines)) if not lines[j])
        else:
            i += 1
            continue
        before = lines[i - 1] if i else ""
        mark = re.fullmatch(r"<!-- (.*) -->", before)
        text = "\n".join(
            line.removeprefix("    " * (begin == i)) for line in lines[begin:end]
        )
        parsed.append(
            Block(document, begin + 1, language, text + "\n", mark[1] if mark else "")
        )
        i = end + 1
    return parsed


def commands(text: str) -> list[Command]:
    """The simple commands of a shell text, without redirections and variables."""
    simple: list[Command] = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\d>&\d", "", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: Command = []
        for token in (tokens := iter(lexer)):
            if not set(token) <= set("();<>|&"):
                command.append(token)
            elif token.startswith((">", "<")):
                next(tokens)
            else:
                simple.append(command)
                command = []
        simple.append(command)
    bare = [without_variables(command) for command in simple]
    return [command for command in bare if command]


def without_variables(command: Command) -> Command:
    while command and re.match(r"\w+=", command[0]):
        command = command[1:]
    return command


def ours_within(command: Command) -> Iterator[Command]:
    """`python train.py ...` behind another program's name, or in a quoted argument."""
    if command[:2] == ["python", "train.py"]:
        yield command
        return
    for i, token in enumerate(command):
        if command[i : i + 2] == ["python", "train.py"]:
            yield command[i:]
        elif "train.py " in token:
            for inner in commands(token.partition("=")[2]):
                yield from ours_within(inner)


def promised_shapes(source: str) -> list[tuple[str, str, list[int]]]:
    """(expression, dtype or "", shape) of lines that end in `# uint8 [2, 3]`."""
    promised = []
    for line in source.splitlines():
        code, _, comment = line.partition("  # ")
        if match := re.match(r"(?:(\w+) )?\[([1-9]\d*(?:, [1-9]\d*)*)\]", comment):
            name = re.match(r"(\w+) = ", code)
            shape = [int(size) for size in match[2].split(",")]
            promised.append((name[1] if name else code, match[1] or "", shape))
    return promised


def inline_code(document: str) -> list[str]:
    """What stands between backticks in the running text, as one line each."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def links(document: str) -> Iterator[tuple[pathlib.Path, str]]:
    """(file, anchor or "") of the links to files of the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            origin = ROOT / document
            yield (origin.parent / path).resolve() if path else origin, anchor


def anchors(path: pathlib.Path) -> set[str]:
    """GitHub's names of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def first_column(document: str, heading: str) -> set[str]:
    """The names in backticks in the first column of a section's table."""
    section = re.split(r"^#+ ", (ROOT / document).read_text(), flags=re.M)
    (text,) = [part for part in section if part.startswith(heading)]
    cells = re.findall(r"^\| (.*?) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
