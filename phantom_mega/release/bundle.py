"""Flatten a module, and all of this package that it imports, into one Python file that needs nothing of this package.

A release carries its code as one file for each component. With several files that import each other it would not load:
diffusers copies a module's direct relative imports alone, into one folder that all releases share, and downloads from
the hub only `pipeline.py` and one file for each component (diffusers/utils/dynamic_modules_utils.py, 0.42.1).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError

PACKAGE = __name__.split(".")[0]
ROOT = Path(__file__).resolve().parents[1]
_FUTURE = "from __future__ import annotations"


@dataclass(frozen=True)
class _Module:
    """One module's text and what flattening must know of it.

    Attributes:
        name: dotted, as `phantom_mega.windows`.
        text: without imports of the package, `TYPE_CHECKING` blocks, the future import and the leading docstring.
        docstring: of the module.
        needs: modules of the package that it imports, in order.
        defines: names that it binds at the top level, other than by imports.
        imports: name -> what it is imported from.
    """

    name: str
    text: str
    docstring: str
    needs: tuple[str, ...]
    defines: frozenset[str]
    imports: dict[str, str]


def bundle(module: str, package: str = PACKAGE, root: Path = ROOT) -> str:
    """The text of one file with a module and all that it imports of its package.

    Args:
        module: dotted name.
        package: the package's name.
        root: the package's folder.

    Raises:
        UserError: flattening would change what a name means; names both places.
    """
    modules = list(_ordered(module, package, root, {}))
    _check_names(modules)
    main = modules[-1]
    parts = ", ".join(_short(one, package) for one in modules)
    made = f"One file made of several of {package}, so that it loads without that package: {parts}."
    sections = [f'"""{main.docstring.rstrip()}\n\n{made}\n"""\n\n{_FUTURE}\n']
    for one in modules:
        heading = f"# --- {_short(one, package)} " + "-" * max(3, 110 - len(one.name))
        about = (
            "" if one is main else "".join(f"# {line}".rstrip() + "\n" for line in one.docstring.strip().split("\n"))
        )
        sections.append(f"{heading}\n{about}\n{one.text.strip()}\n")
    return "\n\n".join(sections)


def _short(module: _Module, package: str) -> str:
    return module.name.removeprefix(f"{package}.").replace(".", "/") + ".py"


def _ordered(name: str, package: str, root: Path, seen: dict[str, bool]) -> Iterator[_Module]:
    """Modules in an order in which each comes after those that it needs."""
    if name in seen:
        if not seen[name]:
            raise UserError(f"{name} imports itself in a circle; it cannot be flattened")
        return
    seen[name] = False
    module = _read(name, package, root)
    for need in module.needs:
        yield from _ordered(need, package, root, seen)
    seen[name] = True
    yield module


def _path(name: str, package: str, root: Path) -> Path | None:
    """The file of a module; None for what is no module."""
    base = root.joinpath(*name.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _read(name: str, package: str, root: Path) -> _Module:
    path = _path(name, package, root)
    if path is None:
        raise UserError(f"there is no module {name} in {root}")
    source = path.read_text()
    tree, needs, imports, cut = ast.parse(source), [], {}, []
    for node in tree.body:
        if _is_type_checking(node) or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            cut.append(node)
        elif _of_package(node, package):
            needs += [need for need in _needed(node, name, package, root) if need not in needs]
            cut.append(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imports |= _imported(node)
    for node in ast.walk(tree):
        if _of_package(node, package) and not any(node is top or node in ast.walk(top) for top in cut):
            raise UserError(f"{name}, line {node.lineno}: an import of {package} inside of a function or block")
    docstring = ast.get_docstring(tree, clean=False) or ""
    if docstring:
        cut.append(tree.body[0])
    defines = frozenset(bound for node in tree.body for bound in _bound(node))
    return _Module(name, _without(source, cut, name), docstring, tuple(needs), defines, imports)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _of_package(node: ast.AST, package: str) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == package
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == package for alias in node.names)


def _needed(node: ast.Import | ast.ImportFrom, name: str, package: str, root: Path) -> list[str]:
    """The module that an import statement names; its names are then simply there."""
    where = f"{name}, line {node.lineno}"
    if isinstance(node, ast.Import) or node.level:
        raise UserError(f"{where}: write `from {package}.module import name`; other imports cannot be flattened")
    for alias in node.names:
        if alias.asname or alias.name == "*":
            raise UserError(f"{where}: `{alias.name}` must be imported by its own name")
        if _path(f"{node.module}.{alias.name}", package, root):
            raise UserError(f"{where}: `{alias.name}` is a module; import the names in it")
    return [node.module]


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for alias in node.names
    }


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of the top level binds, imports left out."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif not isinstance(node, (ast.Import, ast.ImportFrom)):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id


def _without(source: str, nodes: list[ast.stmt], name: str) -> str:
    lines = source.split("\n")
    for node in nodes:
        beside = lines[node.lineno - 1][: node.col_offset] + lines[node.end_lineno - 1][node.end_col_offset :]
        if beside.split("#")[0].strip():
            raise UserError(
                f"{name}, line {node.lineno}: {beside.strip()!r} would be lost with its neighbour; give it a line"
            )
        lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None)


def _check_names(modules: list[_Module]) -> None:
    """Refuse a name that means two things in the modules' common namespace."""
    owner: dict[str, tuple[str, str]] = {}
    for module in modules:
        meanings = {name: f"defined in {module.name}" for name in module.defines}
        meanings |= {name: f"imported from {source}" for name, source in module.imports.items()}
        for name, meaning in meanings.items():
            if name in vars(builtins) and not name.startswith("__"):
                raise UserError(f"{name} is {meaning} and would hide Python's own in other modules; rename it")
            first, place = owner.setdefault(name, (meaning, module.name))
            if first != meaning:
                raise UserError(f"{name} is {first} ({place}) and {meaning} ({module.name}); rename one of them")
