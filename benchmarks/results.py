"""`benchmarks/results/NAME.json`: rows with all that they depend on, kept or measured.

A row that is there, and was measured from the same sources, with the same versions, on
the same machine, is not measured again: so a call goes on where it was stopped.
"""

import datetime
import functools
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from benchmarks.pairs import Row
from benchmarks.workers import ROOT, Session

FOLDER = ROOT / "benchmarks" / "results"
# What figures do not depend on.
_BESIDE = ("benchmarks/report.py", "benchmarks/targets.py", "benchmarks/__main__.py")


class File:
    """The rows of a benchmark, on disk after each."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        text = path.read_text() if path.exists() else "[]"
        self.rows: list[dict[str, Any]] = json.loads(text)

    def find(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The row that has all of `wanted`."""
        for row in self.rows:
            if all(row.get(key) == value for key, value in wanted.items()):
                return row
        return None

    def put(self, result: dict[str, Any]) -> None:
        """Writes a row in the place of the one with its name, peer and jax, if any."""
        same = ("name", "peer", "jax")
        for i, row in enumerate(self.rows):
            if all(row[key] == result[key] for key in same):
                self.rows[i] = result
                break
        else:
            self.rows.append(result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text(json.dumps(self.rows, indent=1) + "\n")
        aside.replace(self.path)


def identity(row: Row, session: Session, asked: int, seconds: float) -> dict[str, Any]:
    """What a row is and depends on; two that are equal in this are one.

    `asked`: for so many pairs; `seconds`: of a measurement.
    """
    environments = {c.environment for c in (row.ours, *row.theirs)}
    versions = {e: session.interpreters.versions(e) for e in sorted(environments)}
    return {
        "name": row.name,
        "peer": row.peer,
        "jax": session.interpreters.versions("ours")["jax"],
        "unit": row.unit,
        "smaller_is_better": row.smaller_is_better,
        "pairs": row.count(asked),
        "seconds": seconds,
        "code": code_digest(),
        "versions": versions,
        "machine": machine(len(session.cores)),
    }


def circumstances() -> dict[str, Any]:
    """What is told besides: when, at which commit, and what else was running."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


@functools.cache
def machine(cores: int) -> dict[str, Any]:
    """What the figures were measured on; `cores` are those that we may use."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": cores,
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.release()}",
    }


@functools.cache
def code_digest() -> str:
    """Of the sources that figures depend on."""
    digest = hashlib.sha256()
    folders = (ROOT / name for name in ("vgg_flax", "configs", "benchmarks"))
    sources = (path for folder in folders for path in sorted(folder.rglob("*.py")))
    for path in (ROOT / "train.py", *sources):
        name = path.relative_to(ROOT).as_posix()
        if name not in _BESIDE:
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def commit() -> str:
    """Of the working tree; with a "+" where that has changes, or "unknown"."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--", "vgg_flax", "configs", "benchmarks"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    changed = [x for x in status.stdout.splitlines() if "benchmarks/results/" not in x]
    return head.stdout.strip() + "+" * bool(changed)
