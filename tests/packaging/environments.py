# SPDX-License-Identifier: Apache-2.0
"""What would an empty environment hold after `pip install hf-sam`? One of links to what is installed here.

Nothing is downloaded: of the packages at hand, those that the metadata of a wheel ask for, and what those ask for.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def requirements_of(wheel: Path) -> list[str]:
    """Return what the wheel asks for, extras and all."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(metadata).decode("utf-8")).get_all("Requires-Dist") or []


def closure(requirements: list[str], extra: str = "") -> dict[str, Distribution]:
    """Return the installed distributions that these requirements lead to, by name.

    Raises:
        PackageNotFoundError: for one that is not installed.
    """
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    open_lists = [(requirements, extra)]
    while open_lists:
        lines, of_extra = open_lists.pop()
        for requirement in map(Requirement, lines):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
                continue
            package = distribution(requirement.name)
            found[package.name.lower()] = package
            for next_extra in ("", *requirement.extras):
                if (package.name, next_extra) not in asked:
                    asked.add((package.name, next_extra))
                    open_lists.append((package.requires or [], next_extra))
    return found


def missing(requirements: list[str], extra: str) -> str | None:
    """Return the name of a package that is asked for and is not installed, None if there is none."""
    try:
        closure(requirements, extra)
    except PackageNotFoundError as error:
        return str(error.name)
    return None


def tops(package: Distribution) -> Iterator[Path]:
    """Yield the files and folders of a distribution that lie in `site-packages` itself."""
    site = Path(str(package.locate_file("")))
    for name in sorted({file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}):
        if (site / name).exists():
            yield site / name


def install(wheel: Path, folder: Path, extra: str = "") -> Path:
    """Make an environment with the wheel and what it asks for; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for package in closure(requirements_of(wheel), extra).values():
        for path in tops(package):
            if not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"
