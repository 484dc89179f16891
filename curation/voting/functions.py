"""Labeling functions: plain decorated functions, found by path, each named by a digest of all that decides
its votes.

A folder of functions is loaded as a private package, straight from the source text: no byte-code cache is
read or written, so an edited file is never mistaken for the one before it. Nothing here calls a function on a
row.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import linecache
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from curation.errors import UsageError
from curation.records import canonical_json, digest

ABSTAIN = -1


@dataclass(frozen=True, slots=True)
class Row:
    """What a labeling function sees: one record and, where it has one, the completion under judgement."""

    prompt: str = ""
    completion: str | None = None
    messages: Sequence[Mapping[str, str]] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)
    record: str = ""
    trust: str | None = None
    lang: str | None = None
    group: str | None = None
    time: str | None = None
    source: str | None = None


Vote = Callable[[Row], str | None]


@dataclass(frozen=True)
class Function:
    """A labeling function: call it with a :class:`Row`; it answers one of ``classes``, or None to abstain."""

    name: str
    call: Vote
    classes: tuple[str, ...]
    resources: tuple[str, ...] = ()
    made: tuple[str, int] | None = None  # file and line where a ready-made one was asked for

    def __call__(self, row: Row) -> str | None:
        return self.call(row)

    @property
    def path(self) -> Path:
        """The file that defines it."""
        return Path(self.made[0] if self.made else inspect.unwrap(self.call).__code__.co_filename)

    @property
    def line(self) -> int:
        """The line of that file."""
        return self.made[1] if self.made else inspect.unwrap(self.call).__code__.co_firstlineno

    @property
    def description(self) -> str:
        """The first line of its docstring, or nothing."""
        return (inspect.getdoc(self.call) or "").partition("\n")[0]

    @functools.cached_property
    def source(self) -> str:
        """Its source text, decorator included. Raises :class:`UsageError` where there is no file to read it
        from.
        """
        return _source(inspect.unwrap(self.call), self.name)

    @functools.cached_property
    def digest(self) -> str:
        """Names everything that decides its votes.

        Covers the source text, the classes, defaults and closures, the constants and helper functions of its
        own folder that it uses (and those that they use), and the bytes of its look-up files. Libraries count
        by name. Raises :class:`UsageError` for a missing look-up file, or a global value that has no stable
        spelling.
        """
        reach = _Reach(self.path.parent, self.name).walk(inspect.unwrap(self.call))
        parts = sorted(canonical_json(part).decode() for part in reach)
        files = {name: digest(_resource(self, name)) for name in self.resources}
        return digest(canonical_json([self.name, self.classes, parts, files]))


def labeling_function(
    *, classes: Iterable[str], name: str | None = None, resources: Iterable[str] = ()
) -> Callable[[Vote], Function]:
    """Declare a labeling function and the ``classes`` that it may answer.

    ``resources`` are look-up files beside the module; their bytes become part of the digest.

    >>> @labeling_function(classes=["spam"])
    ... def shouts(row):
    ...     return "spam" if row.prompt.isupper() else None
    >>> shouts(Row(prompt="BUY NOW"))
    'spam'
    """
    if isinstance(classes, str) or callable(classes):
        raise UsageError(
            "@labeling_function needs a list of classes", next='Write @labeling_function(classes=["a", "b"])'
        )
    chosen, files = tuple(classes), tuple(resources)
    if not chosen or not all(isinstance(c, str) and c for c in chosen):
        raise UsageError("@labeling_function needs at least one class name", next='Write classes=["a", "b"]')

    def wrap(call: Vote) -> Function:
        if not isinstance(inspect.unwrap(call), FunctionType):
            raise UsageError("@labeling_function decorates plain functions", next="Write def name(row): ...")
        return Function(name or call.__name__, call, chosen, files)

    return wrap


# Finding ----------------------------------------------------------------------------------------------------


def find_functions(path: str | Path) -> list[Function]:
    """The labeling functions of a module file, or of every module of a folder, in the order of files and
    lines.

    Modules whose name starts with an underscore hold helpers and are read only when another one imports them
    (``from ._words import ...``). Raises :class:`UsageError` when the path is missing, holds no function, a
    module does not load, or two functions share a name.
    """
    where = Path(path).resolve()
    files = _modules(where)
    package = _fresh_package(files[0].parent) if files else ""
    found = [f for file in files for f in _functions_of(_load(package, file))]
    if not found:
        raise UsageError(
            "no labeling function found",
            where=str(where),
            next="Decorate one: @labeling_function(classes=[...])",
        )
    _refuse_twins(found)
    for function in found:
        _ = function.digest  # now, while the files are the ones that were loaded
    return found


def functions_for(functions: Iterable[Function], classes: Iterable[str]) -> list[Function]:
    """Those functions that speak of these classes and no others: the voters of one Question.

    Raises :class:`UsageError` for a function that knows some of the classes and, beside them, others.
    """
    wanted = set(classes)
    chosen = [f for f in functions if wanted & set(f.classes)]
    for function in chosen:
        if extra := sorted(set(function.classes) - wanted):
            raise UsageError(
                f"{function.name} may answer {', '.join(extra)}, which the question does not have",
                where=str(function.path),
                next=f"Its classes are: {', '.join(sorted(wanted))}",
            )
    return chosen


def _load(package: str, path: Path) -> ModuleType:
    """One module of the package; the error of a module that does not load carries its file and line."""
    name = f"{package}.{path.stem}"
    try:
        with _finding(package, path.parent):
            return importlib.import_module(name)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"does not load: {type(error).__name__}: {error}",
            where=_blame(error, path),
            next="Mend the module",
        ) from error


def _fresh_package(folder: Path) -> str:
    """A private, empty package over ``folder``: it can shadow nothing, and no module of an earlier load
    survives.
    """
    name = f"_tilth_functions_{digest(str(folder))[:12]}"
    for old in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
        del sys.modules[old]
    package = ModuleType(name)
    package.__path__ = []  # only the finder below finds its modules
    sys.modules[name] = package
    return name


def _modules(where: Path) -> list[Path]:
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise UsageError(
            "no such file or folder", where=str(where), next="Name a module or a folder of modules"
        )
    return sorted(file for file in where.glob("*.py") if not file.name.startswith("_"))


def _functions_of(module: ModuleType) -> list[Function]:
    """Those that this module defines; the ones it imports are found in their own."""
    mine = {id(f): f for f in vars(module).values() if isinstance(f, Function)}
    own = [f for f in mine.values() if f.path == Path(str(module.__file__))]
    return sorted(own, key=lambda f: f.line)


def _refuse_twins(functions: Sequence[Function]) -> None:
    first: dict[str, Function] = {}
    for function in functions:
        twin = first.setdefault(function.name, function)
        if twin is not function:
            raise UsageError(
                f"two labeling functions are called {function.name}",
                where=f"{twin.path} and {function.path}",
                next="Rename one, or pass name= to the decorator",
            )


def _blame(error: Exception, path: Path) -> str:
    """``file:line`` of the innermost frame inside the module, else of the syntax error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}:{error.lineno}"
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{path}:{lines[-1]}" if lines else str(path)


class _Fresh(SourceFileLoader):
    """Compiles the text of the file each time: cached byte code is trusted by whole seconds, too coarse for
    an editor.
    """

    def get_code(self, fullname: str) -> CodeType:
        linecache.cache.pop(self.path, None)
        return self.source_to_code(self.get_data(self.path), self.path)


class _Finder:
    """Finds the modules of one folder for its private package, relative imports of a neighbour included."""

    def __init__(self, package: str, folder: Path) -> None:
        self.package, self.folder = package, folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        parent, _, leaf = name.rpartition(".")
        file = self.folder / f"{leaf}.py"
        if parent != self.package or not file.is_file():
            return None
        return importlib.util.spec_from_file_location(name, file, loader=_Fresh(name, str(file)))


@contextmanager
def _finding(package: str, folder: Path) -> Iterator[None]:
    """Put the finder of one folder in place for as long as one of its modules loads."""
    finder = _Finder(package, folder)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]


# Digests ----------------------------------------------------------------------------------------------------


def _source(call: Any, name: str) -> str:
    try:
        return textwrap.dedent(inspect.getsource(call))
    except (OSError, TypeError) as error:
        raise UsageError(
            f"the source of {name} cannot be read, so nothing can name its votes",
            next="Put it into a module of the workspace's labeling_functions folder",
        ) from error


def _resource(function: Function, name: str) -> bytes:
    path = function.path.parent / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"labeling function {function.name} needs the look-up file {name}",
            where=str(path),
            next="Put the file there, or correct resources=",
        ) from error


class _Reach:
    """Walks from one function to every helper and value of its own folder that it can reach."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder.resolve(), name
        self.seen: set[int] = set()

    def walk(self, code: Any) -> Iterator[list[Any]]:
        """``[where, spelling]`` of a function or class and of all that it uses; each once."""
        if id(code) in self.seen:
            return
        self.seen.add(id(code))
        key = _home(code)
        yield [key, _source(code, self.name)]
        if isinstance(code, type):
            yield from self._members(code)
            return
        for name, value in sorted(_used(code).items()):
            yield from self._value(f"{key}:{name}", value)

    def _members(self, owner: type) -> Iterator[list[Any]]:
        for member in vars(owner).values():
            if isinstance(member := _undress(member), FunctionType) and self._is_ours(member):
                yield from self.walk(member)

    def _value(self, key: str, value: Any) -> Iterator[list[Any]]:
        yield [key, self._spell(key, value)]
        for leaf in _leaves(value):
            if isinstance(leaf, (FunctionType, type)) and self._is_ours(leaf):
                yield from self.walk(leaf)
            elif isinstance(leaf, ModuleType) and self._is_ours(leaf):
                yield [_home(leaf), inspect.getsource(leaf)]

    def _is_ours(self, value: Any) -> bool:
        try:
            return Path(inspect.getfile(value)).resolve().parent == self.folder
        except (TypeError, OSError):
            return False

    def _spell(self, key: str, value: Any) -> Any:
        spelled = spell(value)
        if spelled is None:
            raise UsageError(
                f"{self.name} uses {key}, a {type(value).__name__}, whose content no digest can cover",
                next="Make it a plain value, or build it in a cached helper from a file listed in resources=",
            )
        return spelled


def _home(code: Any) -> str:
    """Module and qualified name, without the package: the folder may lie anywhere."""
    if isinstance(code, ModuleType):
        return code.__name__.rpartition(".")[2]
    return f"{code.__module__.rpartition('.')[2]}.{code.__qualname__}"


def _used(call: Any) -> dict[str, Any]:
    """The globals, closure cells and defaults that a function's code names, nested code included."""
    names = _names(call.__code__)
    cells = zip(call.__code__.co_freevars, call.__closure__ or (), strict=True)
    used = {name: call.__globals__[name] for name in names if name in call.__globals__}
    used |= {f"({name})": cell.cell_contents for name, cell in cells}
    return used | {"(defaults)": [list(call.__defaults__ or ()), dict(call.__kwdefaults__ or {})]}


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _undress(value: Any) -> Any:
    """The plain function inside a labeling function, static method or ``functools`` wrapper."""
    if isinstance(value, Function):
        value = value.call
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    return inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value


def _leaves(value: Any) -> Iterator[Any]:
    """The values inside containers, undressed."""
    value = _undress(value)
    if isinstance(value, functools.partial):
        yield from _leaves([value.func, value.args, value.keywords])
    elif isinstance(value, Mapping):
        yield from _leaves([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def spell(value: Any) -> list[Any] | None:
    """A stable spelling of a value for a digest, or None where there is none.

    Plain values, their containers (sets sorted) and compiled patterns are spelled by content; a path by its
    last part, since a workspace may move; modules, functions and classes by name.
    """
    value = _undress(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return [type(value).__name__, repr(value)]
    if isinstance(value, Path):
        return ["path", value.name]
    if isinstance(value, re.Pattern):
        return ["pattern", spell(value.pattern), value.flags]
    if isinstance(value, (list, tuple)):
        return _spell_all(type(value).__name__, value)
    if isinstance(value, (set, frozenset)):
        return _spell_all("set", sorted(value, key=repr))
    if isinstance(value, Mapping):
        return _spell_all("mapping", [x for k in sorted(value, key=repr) for x in (k, value[k])])
    if isinstance(value, functools.partial):
        return _spell_all("partial", [value.func, value.args, value.keywords])
    if isinstance(value, (ModuleType, type)) or inspect.isroutine(value):
        return ["code", _home(value)]
    return None


def _spell_all(kind: str, items: Iterable[Any]) -> list[Any] | None:
    spelled = [spell(item) for item in items]
    return None if any(item is None for item in spelled) else [kind, spelled]
