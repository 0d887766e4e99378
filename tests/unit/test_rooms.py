"""The rooms: which may import which, and what every module says of itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "dovetail": ROOT / "core",
    "dovetail_partitioner": ROOT / "partitioner",
    "dovetail_edge": ROOT / "edge-runtime",
    "dovetail_serving": ROOT / "serving",
    "dovetail_operator": ROOT / "operator",
    "dovetail_cli": ROOT / "cli",
}
MODULES = sorted(file for name, room in ROOMS.items() for file in (room / name).rglob("*.py"))


def test_arrows_between_rooms_point_down_only():
    """Verify the import contracts of pyproject.toml."""
    script = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run(
        [script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_are_not_vacuous():
    """Verify that every room there is stands under the contracts."""
    text = (ROOT / "pyproject.toml").read_text()
    for name, room in ROOMS.items():
        assert (room / name / "__init__.py").is_file()
        assert f'"{name}"' in text


def loaded_with(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("room", "heavy"),
    [
        ("dovetail", {"onnx", "ray", "torch", "kubernetes", "scipy"}),
        ("dovetail_edge", {"onnx", "ray", "torch", "kubernetes", "scipy"}),
    ],
)
def test_importing_a_room_loads_nothing_heavy(room, heavy):
    """Verify in a fresh interpreter, so that what a dependency pulls in counts too."""
    names = [
        ".".join(file.relative_to(ROOMS[room]).with_suffix("").parts)
        for file in MODULES
        if file.is_relative_to(ROOMS[room]) and not file.stem.startswith("__")
    ]

    assert not loaded_with(room, *names) & heavy


@pytest.mark.parametrize("folder", ["operator", "tests/unit/operator"])
def test_no_folder_shadows_pythons_operator_module(folder):
    """Verify that the operator's folders are no packages."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_are_no_packages():
    """Verify that no test folder holds an __init__.py, which importlib mode would trip over."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(file):
    """Verify a docstring on every module, public class and public function."""
    tree = ast.parse(file.read_text())
    silent = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node in tree.body
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]

    assert ast.get_docstring(tree), "the module has no docstring"
    assert silent == []


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_stays_readable(file):
    """Verify the bounds of the house: 400 lines a module, 40 a function."""
    text = file.read_text()
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - body_start(node) + 1 > 40
    ]

    assert len(text.splitlines()) <= 400
    assert long == []


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """First line of a function's code, behind its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return first.lineno
