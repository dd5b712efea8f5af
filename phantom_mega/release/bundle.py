"""One module and all project modules that it imports, flattened into one Python file that needs libraries alone.

diffusers loads a pipeline's own code from one file per component: it copies a local component's direct relative imports
into one folder that all components share, and downloads `pipeline.py` and one file per component from the hub
(`diffusers/utils/dynamic_modules_utils.py`). Several files would clash or be missing.
"""

from __future__ import annotations

import ast
import builtins
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError

PROJECT = "phantom_mega"
SOURCE_ROOT = Path(__file__).resolve().parents[2]
_HEAD = '''"""{title}

{what}
Written by tools/export_hf.py of {project} from the files named below, one after another, unchanged but for their
imports of each other. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations
'''


@dataclass(frozen=True)
class _Module:
    """A source file of the project.

    Attributes:
        name: dotted.
        path: relative to the root, for people.
        text: what the file holds.
        tree: its syntax.
    """

    name: str
    path: str
    text: str
    tree: ast.Module

    def place(self, node: ast.AST) -> str:
        """`phantom_mega/geometry.py, line 17`."""
        return f"{self.path}, line {node.lineno}"


def bundle(module: str, what: str, root: Path = SOURCE_ROOT) -> str:
    """The text of one self-contained file with everything that a module defines.

    Args:
        module: dotted name, as `phantom_mega.hf.transformer_phantom`.
        what: a sentence that tells a reader what the file is for.
        root: folder that holds the project's package.

    Raises:
        UserError: flattening would change what the code means; names the line.
    """
    modules: list[_Module] = []
    _collect(module, root, modules, ())
    _check_names(modules)
    title = (ast.get_docstring(modules[-1].tree) or module).splitlines()[0]
    sections = [_HEAD.format(title=title, what=what, project=PROJECT)]
    for source in modules:
        rule = f"# --- {source.path} "
        sections.append(f"{rule}{'-' * (120 - len(rule))}\n\n{_without_project(source)}")
    text = "\n\n".join(sections)
    compile(text, f"<bundle of {module}>", "exec", dont_inherit=True)
    return text


def _collect(name: str, root: Path, found: list[_Module], above: tuple[str, ...]) -> None:
    """Append a module after all that it imports."""
    if name in above:
        raise UserError(f"{name} imports itself by way of {' and '.join(above[above.index(name) + 1 :]) or 'nothing'}")
    if any(module.name == name for module in found):
        return
    module = _read(name, root)
    for node in module.tree.body:
        if _is_project_import(node):
            _collect(node.module, root, found, (*above, name))
    _check_imports(module, found)
    found.append(module)


def _read(name: str, root: Path) -> _Module:
    base = Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if (root / path).is_file():
            text = (root / path).read_text()
            return _Module(name, path.as_posix(), text, ast.parse(text, str(path)))
    raise UserError(f"there is no module {name} in {root}")


def _is_project_import(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == PROJECT


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_dropped(node: ast.AST) -> bool:
    """Whether a statement has no place in the flat file."""
    future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    return future or _is_project_import(node) or (_is_type_checking(node) and not node.orelse)


def _check_imports(module: _Module, imported: list[_Module]) -> None:
    """Refuse imports of the project that cannot be left out of a flat file."""
    kept = [node for node in module.tree.body if not _is_dropped(node)]
    for node in (inner for outer in kept for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise UserError(f"{module.place(node)}: a relative import cannot be flattened; write it out")
        if _is_project_import(node):
            raise UserError(f"{module.place(node)}: an import of {node.module} below the top level cannot be flattened")
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PROJECT:
                    wanted = f"from {alias.name} import NAME"
                    raise UserError(f"{module.place(node)}: `import {alias.name}` cannot be flattened; use `{wanted}`")
    for node in filter(_is_project_import, module.tree.body):
        source = next(found for found in imported if found.name == node.module)
        known = {name for name, _, _ in _bindings(source)}
        for alias in node.names:
            if alias.asname:
                wanted = f"rename one {alias.name}"
                raise UserError(
                    f"{module.place(node)}: `{alias.name} as {alias.asname}` cannot be flattened; {wanted} in its file"
                )
            if alias.name not in known:
                raise UserError(
                    f"{module.place(node)}: {node.module} defines no {alias.name!r}; import names, not modules"
                )


def _check_names(modules: list[_Module]) -> None:
    """Refuse names that would mean something else in one file than in several."""
    owners: dict[str, tuple[str, str]] = {}
    for module in modules:
        for name, meaning, node in _bindings(module):
            place = module.place(node)
            if name in vars(builtins) and not name.startswith("__"):
                raise UserError(f"{place}: {name!r} would hide Python's own in other modules; rename it")
            known = owners.setdefault(name, (meaning, place))
            if known[0] != meaning:
                raise UserError(f"{place}: {name!r} means something else in {known[1]}; rename one of them")


def _bindings(module: _Module) -> Iterator[tuple[str, str, ast.AST]]:
    """(name, what it means, where) of everything that is bound at a module's top level.

    What a library's import binds is told by its origin, so the same import in two modules is one meaning.
    """
    for node in _top_level(module.tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, module.name, node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                yield alias.asname or whole, f"import {whole}", node
        elif isinstance(node, ast.ImportFrom) and not _is_dropped(node):
            for alias in node.names:
                if alias.name == "*":
                    raise UserError(f"{module.place(node)}: `import *` cannot be flattened; name what is used")
                yield alias.asname or alias.name, f"from {node.module} import {alias.name}", node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, module.name, node


def _top_level(body: list[ast.AST]) -> Iterator[ast.AST]:
    """All nodes that run in the module's own scope."""
    for node in body:
        if _is_type_checking(node):
            continue
        yield node
        scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
        if not isinstance(node, scopes + comprehensions):
            yield from _top_level(list(ast.iter_child_nodes(node)))


def _without_project(module: _Module) -> str:
    """The source without its imports of the project, `from __future__` and blocks for type checkers."""
    lines = module.text.splitlines()
    for node in filter(_is_dropped, module.tree.body):
        outside = lines[node.lineno - 1][: node.col_offset] + lines[node.end_lineno - 1][node.end_col_offset :]
        if outside.split("#")[0].strip():
            raise UserError(f"{module.place(node)}: another statement on this line; give the import a line of its own")
        for i in range(node.lineno - 1, node.end_lineno):
            lines[i] = None
    kept: list[str] = []
    for empty, run in itertools.groupby(lines, key=lambda line: line is None or not line.strip()):
        run = list(run)
        if empty and None in run:  # as many blank lines as stood on one side of what is gone
            blanks = [len(list(group)) for gone, group in itertools.groupby(run, key=lambda x: x is None) if not gone]
            run = [""] * max(blanks, default=0)
        kept += run
    return "\n".join(kept).strip() + "\n"
