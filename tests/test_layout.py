# SPDX-License-Identifier: Apache-2.0
"""Does the code keep to the layout and the house limits? Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.looped import looped

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hf_sam"

# Level of everything at the top of the package; an import goes to the same level or a lower one. A new folder needs a
# line here, and one in the design.
LEVELS = {
    "_checks": 1, "_model_card": 1, "step_context": 1, "parameters": 1, "vectors": 1,
    "gate": 2, "variants": 2,
    "radius": 3, "step": 3,
    "config": 4, "functional": 4, "sharpness": 4,
    "engines": 5,
    "trainer": 6,
    "rho_search": 7,
    "__init__": 8, "cli": 8,  # the commands use the public names, as any user does
    "__main__": 9,
}  # fmt: skip
AT_THE_TOP = 18  # entries of the package's folder, `__init__.py`, `__main__.py` and `py.typed` aside
TORCH_ONLY = 4  # up to this level a module works in a hand-written loop
TORCH_PACKAGES = {"torch", "safetensors"}
SHARPNESS_PACKAGES = {"matplotlib", "numpy", "scipy", "transformers"}  # for hf_sam.sharpness alone
TRAINER_PACKAGES = {"accelerate", "huggingface_hub", "transformers"}
COMMANDS = f"{PACKAGE}.cli"  # whose own extra brings packages, and which talks to its user
COMMAND_PACKAGES = {
    "datasets", "evaluate", "jinja2", "matplotlib", "numpy", "peft", "PIL", "plotly", "pyarrow", "rich", "scipy",
    "seqeval", "sklearn", "tqdm", "trl", "yaml",
}  # fmt: skip

FILE_LINES = 250
FUNCTION_LINES = 35

# A registry's or a machine's name, or unfinished work. The brackets keep the patterns from finding themselves.
UNWANTED = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|work|opt)/|\bTO[D]O\b|\bFIX[M]E\b|pypi\.org|pythonhosted\.org|npmjs\.org"
)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return "hf_sam.variants.sam" for its file, "hf_sam.variants" and "hf_sam" for the __init__ files."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level_of(module: str) -> int | None:
    """Return the level of a module of the package by its full name, None for one that has none."""
    parts = module.split(".")
    return LEVELS.get(parts[1] if len(parts) > 1 else "__init__")


MODULES = {name_of(path): path.read_text(encoding="utf-8") for path in sources(PACKAGE)}
everywhere = pytest.mark.parametrize("module", MODULES)


# ----------------------------------------------------------------------------------------------------------------------
# The checks: each takes source text and yields one line per violation
# ----------------------------------------------------------------------------------------------------------------------
def imported(source: str) -> Iterator[str]:
    """Yield the full name of everything imported, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def target_in(known: set[str], name: str) -> str:
    """Return the module of the package that `name` lives in: the longest known prefix."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def bad_imports(module: str, source: str, known: set[str]) -> Iterator[str]:
    level = level_of(module)
    if level is None:
        yield f"{module} has no level: add it to LEVELS"
        return
    allowed = {PACKAGE, *sys.stdlib_module_names, *TORCH_PACKAGES, *(TRAINER_PACKAGES if level > TORCH_ONLY else ())}
    if module.startswith(f"{PACKAGE}.sharpness"):
        allowed |= SHARPNESS_PACKAGES
    if module.startswith(COMMANDS):
        allowed |= COMMAND_PACKAGES
    for name in imported(source):
        root = name.split(".")[0]
        if root not in allowed:
            yield f"{module} (level {level}) imports {name}"
        elif root == PACKAGE:
            target = target_in(known, name)
            to = level_of(target)
            if to is None or to > level:
                yield f"{module} (level {level}) imports up: {target} (level {to})"


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that are left when every module that imports none of the others is taken away, repeatedly."""
    left = dict(graph)
    while done := [m for m, targets in left.items() if not (targets - {m}) & left.keys()]:
        for module in done:
            del left[module]
    return sorted(left)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count from the first line after the docstring to the last one."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := body_lines(node)) > FUNCTION_LINES:
            yield f"{node.name} has {n} lines, {FUNCTION_LINES} are allowed"


def is_call_of(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def forbidden(source: str) -> Iterator[str]:
    """Yield what the library never does: vanish under -O, catch or raise anything, talk, swap storage, unpickle."""
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Assert):
            yield where + "assert"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield where + "bare except"
        elif isinstance(node, ast.Raise) and node.exc and re.match(r"(Base)?Exception\b", ast.unparse(node.exc)):
            yield where + "raise Exception"
        elif is_call_of(node, "print"):
            yield where + "print"
        elif isinstance(node, ast.Attribute) and node.attr == "data" and isinstance(node.ctx, ast.Store):
            yield where + ".data ="
        elif is_call_of(node, "torch.save", "torch.load"):
            yield where + "a pickle of torch's"
    if any(name.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve"} for name in imported(source)):
        yield "a pickle module"


def undocumented(source: str) -> Iterator[str]:
    """Yield the public functions, classes and methods without a docstring."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    open_nodes: list[ast.AST] = [ast.parse(source)]
    while open_nodes:
        for node in open_nodes.pop().body:
            if isinstance(node, definitions) and not node.name.startswith("_"):
                if ast.get_docstring(node) is None:
                    yield node.name
                if isinstance(node, ast.ClassDef):
                    open_nodes.append(node)


def unwanted(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := UNWANTED.search(line):
            yield f"line {number}: {found.group()}"


def missing_from(text: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"\b{name}\b", text)]


def public_names(source: str) -> list[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# ----------------------------------------------------------------------------------------------------------------------
# The project passes them
# ----------------------------------------------------------------------------------------------------------------------
@looped
@everywhere
def test_imports_point_down_only(module: str) -> None:
    assert not list(bad_imports(module, MODULES[module], set(MODULES)))


def test_imports_make_no_circle() -> None:
    graph = {m: {target_in(set(MODULES), name) for name in imported(source)} for m, source in MODULES.items()}
    assert not cycle_in(graph)


def test_the_top_of_the_package_fits_on_one_screen() -> None:
    entries = {module.split(".")[1] for module in MODULES if "." in module}
    assert entries == LEVELS.keys() - {"__init__"}
    assert len(entries - {"__main__"}) <= AT_THE_TOP


def test_the_levels_are_those_of_the_design() -> None:
    """The design lies beside the repository while it is worked on; a checkout of its own has none."""
    design = ROOT.parent / "shared" / "design.md"
    if not design.is_file():
        pytest.skip("no design beside this checkout")
    section = design.read_text(encoding="utf-8").partition("## 5. Layout")[2].partition("scripts/ ")[0]
    planned = {name: int(level) for name, level in re.findall(r"^ {6}(\w+)(?:/|\.py) +(\d)\b", section, re.MULTILINE)}
    assert len(planned) >= 15
    assert {name: planned[name] for name in LEVELS if name in planned} == {n: LEVELS[n] for n in LEVELS if n in planned}
    assert set(LEVELS) - set(planned) <= {"__init__", "__main__", "_model_card"}


@looped
@pytest.mark.parametrize("path", sources(PACKAGE) + sources("scripts"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_answers_one_question(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@looped
@everywhere
def test_a_function_fits_one_screen(module: str) -> None:
    assert not list(long_functions(MODULES[module]))


@looped
@everywhere
def test_nothing_forbidden_is_used(module: str) -> None:
    found = forbidden(MODULES[module])
    assert not [line for line in found if not (module.startswith(COMMANDS) and line.endswith(": print"))]


@looped
@everywhere
def test_everything_public_has_a_docstring(module: str) -> None:
    assert not list(undocumented(MODULES[module]))


def test_every_public_name_is_in_the_readme() -> None:
    names = public_names(MODULES[PACKAGE])
    assert names
    assert not missing_from((ROOT / "README.md").read_text(encoding="utf-8"), names)


def test_tracked_files_name_no_machine_and_leave_nothing_undone() -> None:
    texts = {path: path.read_bytes().decode("utf-8", "ignore") for path in tracked_files()}
    assert not {str(path.relative_to(ROOT)): found for path, text in texts.items() if (found := list(unwanted(text)))}
