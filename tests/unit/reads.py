"""Which settings a job reads, by analysis of its source: reachable functions, and the annotated types in them.

A function is reachable if its name occurs in a reachable one; with a class come all its methods. `x.field` counts as a
read if the annotations say that `x` is the config; so do the names in a function that calls `getattr` on it. Validation
(`__post_init__`) does not count, nor do `asdict` and `replace`, which copy whatever there is.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Symbol = tuple[str, str]
"""A module, and a name at its top level."""
Typed = tuple[str, ast.expr]
"""An annotation, and the module whose names it is written in."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """The top level of a file.

    Attributes:
        defined: name to statement.
        imported: local name to what it stands for; of a module, with an empty name.
    """

    tree: ast.Module
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, Symbol] = field(default_factory=dict)


class Source:
    """The source files of some packages."""

    def __init__(self, root: Path, packages: tuple[str, ...]) -> None:
        self.modules: dict[str, Module] = {}
        self.attributes: dict[tuple[Symbol, str], Typed | None] = {}
        self.scopes: dict[int, Scope] = {}
        for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            self.modules[name] = Module(ast.parse(path.read_text()))
        for module in self.modules.values():
            self.index(module)

    def index(self, module: Module) -> None:
        for statement in module.tree.body:
            if isinstance(statement, Function | ast.ClassDef):
                module.defined[statement.name] = statement
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
                module.defined.update(dict.fromkeys(names, statement))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found = (whole, "") if whole in self.modules else (str(node.module), alias.name)
                    module.imported[alias.asname or alias.name] = found

    def resolve(self, module: str, node: ast.expr) -> Symbol | None:
        """What a name, or an attribute of an imported module, stands for."""
        if isinstance(node, ast.Name):
            found = (module, node.id) if node.id in self.modules[module].defined else None
            found = found or self.modules[module].imported.get(node.id)
            while found and found[1] and found[0] in self.modules:  # through re-exports
                if found[1] in self.modules[found[0]].defined:
                    return found
                found = self.modules[found[0]].imported.get(found[1])
            return found
        if isinstance(node, ast.Attribute):
            owner = self.resolve(module, node.value)
            if owner and not owner[1] and owner[0] in self.modules:
                return self.resolve(owner[0], ast.Name(node.attr))
        return None

    def statement(self, symbol: Symbol) -> ast.stmt | None:
        module = self.modules.get(symbol[0])
        return module.defined.get(symbol[1]) if module else None

    def reachable(self, start: Symbol) -> set[Symbol]:
        """Every function, class and constant that is named in a reachable one."""
        found, pending = set[Symbol](), [start]
        while pending:
            symbol = pending.pop()
            statement = self.statement(symbol)
            if symbol in found or statement is None:
                continue
            found.add(symbol)
            nodes = (node for node in ast.walk(statement) if isinstance(node, ast.Name | ast.Attribute))
            pending += [named for node in nodes if (named := self.resolve(symbol[0], node))]
        return found

    def class_of(self, typed: Typed | None) -> Symbol | None:
        """The class that an annotation names; of `X | None`, X."""
        if typed is None:
            return None
        module, node = typed
        if isinstance(node, ast.BinOp):
            return self.class_of((module, node.left)) or self.class_of((module, node.right))
        symbol = self.resolve(module, node)
        return symbol if symbol and isinstance(self.statement(symbol), ast.ClassDef) else None

    def members(self, symbol: Symbol) -> Iterator[tuple[Symbol, ast.stmt]]:
        """The statements in the bodies of a class and its bases, each with the class that it stands in."""
        statement = self.statement(symbol)
        if isinstance(statement, ast.ClassDef):
            yield from ((symbol, member) for member in statement.body)
            for base in statement.bases:
                if (parent := self.class_of((symbol[0], base))) is not None:
                    yield from self.members(parent)

    def is_protocol(self, symbol: Symbol) -> bool:
        statement = self.statement(symbol)
        bases = statement.bases if isinstance(statement, ast.ClassDef) else []
        return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in bases)

    def scope(self, module: str, function: Function, owner: Symbol | None) -> "Scope":
        return self.scopes.setdefault(id(function), Scope(self, module, function, owner))

    def attribute(self, symbol: Symbol, name: str) -> Typed | None:
        """The annotated type of an attribute, a property's result, or of what a method assigns to `self`."""
        if (symbol, name) not in self.attributes:
            self.attributes[symbol, name] = None  # while it is looked for, which may lead here again
            self.attributes[symbol, name] = self.find_attribute(symbol, name)
        return self.attributes[symbol, name]

    def find_attribute(self, symbol: Symbol, name: str) -> Typed | None:
        for owner, member in self.members(symbol):
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name) and member.target.id == name:
                return owner[0], member.annotation
            if isinstance(member, Function) and member.name == name and member.returns is not None:
                return owner[0], member.returns
        for owner, member in self.members(symbol):
            if isinstance(member, Function):
                scope = self.scope(owner[0], member, owner)
                for target, value in assignments(member):
                    if isinstance(target, ast.Attribute) and target.attr == name and (found := scope.type_of(value)):
                        return found
        return None


def assignments(function: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of every assignment; of tuples, one by one."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    yield from zip(target.elts, node.value.elts, strict=False)
                else:
                    yield target, node.value
        elif isinstance(node, ast.NamedExpr):
            yield node.target, node.value


@dataclass
class Scope:
    """A function, and the types of its variables as far as annotations tell them."""

    source: Source
    module: str
    function: Function
    owner: Symbol | None

    @cached_property
    def variables(self) -> dict[str, Typed]:
        found: dict[str, Typed] = {}
        for inner in ast.walk(self.function):
            if isinstance(inner, Function | ast.Lambda):
                for argument in (*inner.args.args, *inner.args.kwonlyargs):
                    if argument.annotation is not None:
                        found[argument.arg] = self.module, argument.annotation
        self.__dict__["variables"] = found  # assignments below look earlier ones up
        for node in ast.walk(self.function):
            if not (isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name)):
                continue
            if element := self.element_of(node.iter):
                found.setdefault(node.target.id, element)
        for target, value in assignments(self.function):
            if isinstance(target, ast.Name) and (typed := self.type_of(value)):
                found.setdefault(target.id, typed)
        return found

    def type_of(self, node: ast.expr) -> Typed | None:
        if isinstance(node, ast.Name):
            if node.id in ("self", "cls") and self.owner:
                return self.owner[0], ast.Name(self.owner[1])
            return self.variables.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.source.class_of(self.type_of(node.value))
            return self.source.attribute(owner, node.attr) if owner else None
        if isinstance(node, ast.Subscript):
            return self.element_of(node.value)
        if isinstance(node, ast.Call):
            return self.result_of(node)
        return None

    def result_of(self, call: ast.Call) -> Typed | None:
        if isinstance(call.func, ast.Name) and call.func.id == "replace":
            return self.type_of(call.args[0])
        symbol = self.source.resolve(self.module, call.func)
        statement = self.source.statement(symbol) if symbol else None
        if symbol and isinstance(statement, ast.ClassDef):
            return symbol[0], ast.Name(symbol[1])
        if symbol and isinstance(statement, Function) and statement.returns is not None:
            return symbol[0], statement.returns
        return self.type_of(call.func) if isinstance(call.func, ast.Attribute) else None

    def element_of(self, node: ast.expr) -> Typed | None:
        """The type of the values in a list, tuple, iterator or mapping."""
        typed = self.type_of(node)
        if typed is None or not isinstance(typed[1], ast.Subscript):
            return None
        inner = typed[1].slice
        return typed[0], inner.elts[-1] if isinstance(inner, ast.Tuple) else inner

    def reads(self) -> list[tuple[Symbol, str]]:
        """(class, attribute) of everything that is read."""
        return self.found

    @cached_property
    def found(self) -> list[tuple[Symbol, str]]:
        return list(self.find_reads())

    def find_reads(self) -> Iterator[tuple[Symbol, str]]:
        names = {node.value for node in ast.walk(self.function) if isinstance(node, ast.Constant)}
        for node in ast.walk(self.function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read, attributes = node.value, [node.attr]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                read, attributes = node.args[0], [name for name in names if isinstance(name, str)]
            else:
                continue
            if owner := self.source.class_of(self.type_of(read)):
                yield from ((owner, attribute) for attribute in attributes)


def functions(statement: ast.stmt, symbol: Symbol) -> Iterator[tuple[Function, Symbol | None]]:
    """The function itself, or the methods of a class, without validation."""
    if isinstance(statement, Function):
        yield statement, None
    if isinstance(statement, ast.ClassDef):
        methods = (member for member in statement.body if isinstance(member, Function))
        yield from ((method, symbol) for method in methods if method.name != "__post_init__")


def settings_read(source: Source, start: Symbol, configs: set[Symbol]) -> set[tuple[Symbol, str]]:
    """(class that declares it, field) of each setting that is read in what is reachable from `start`.

    Methods and properties of configs count where they are used. What is read of a protocol is read of every config.
    """
    found: set[tuple[Symbol, str]] = set()

    def add(owner: Symbol, name: str) -> None:
        for declared, member in source.members(owner):
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name) and member.target.id == name:
                found.add((declared, name))
                return
            if isinstance(member, Function) and member.name == name and (declared, name) not in found:
                found.add((declared, name))
                if source.is_protocol(declared):
                    for config in configs:
                        add(config, name)
                for read in source.scope(declared[0], member, declared).reads():
                    add(*read)
                return

    for symbol in source.reachable(start) - configs:
        statement = source.statement(symbol)
        assert statement is not None
        for function, owner in functions(statement, symbol):
            for read in source.scope(symbol[0], function, owner).reads():
                add(*read)
    return found
