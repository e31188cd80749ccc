"""One-place edits of the syntax trees of `pipeline/diffusion`: what `mutants.py` runs the tests on."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "pipeline" / "diffusion"

_PAIRS = [
    ("signal", "noise"),
    ("sqrt_alpha", "sqrt_beta"),
    ("coef_x0", "coef_xt"),
    ("log_small", "log_large"),
    ("alphas", "betas"),
    ("alpha_bars", "alpha_bars_prev"),
    ("posterior_mean_coef_x0", "posterior_mean_coef_xt"),
    ("log_variance_small", "log_variance_large"),
    ("x_0", "x_t"),
    ("c1", "c3"),
    ("k0", "k1"),
    ("cos", "sin"),
    ("conditional", "unconditional"),
]
SWAPS = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.RShift: ast.LShift,
    ast.BitXor: ast.BitOr,
    ast.BitAnd: ast.BitOr,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LEFT_OUT = {"sqrt", "exp", "log", "square", "abs", "cos", "sin", "tan", "clamp", "max", "expm1", "detach", "sigmoid"}


@dataclass(frozen=True)
class Mutant:
    module: str
    line: int
    source: str
    what: str
    tree: ast.Module

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.source, self.what


def triple(node: ast.expr) -> ast.expr:
    return ast.BinOp(ast.Constant(3), ast.Mult(), node)


def variants(node: ast.AST, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every (description, replacement) for one node."""
    match node:
        case ast.Constant(value=bool() | None):
            return
        case ast.Constant(value=int() | float() as number):
            yield f"{number} -> {number * 3 or 1}", ast.Constant(number * 3 or 1)
        case ast.Constant(value=str() as name) if name in SWAPS:
            yield f"'{name}' -> '{SWAPS[name]}'", ast.Constant(SWAPS[name])
        case ast.Name(id=name, ctx=ast.Load()) if name in SWAPS and not isinstance(parent, ast.keyword):
            yield f"{name} -> {SWAPS[name]}", ast.Name(SWAPS[name], ast.Load())
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in SWAPS:
            yield f".{name} -> .{SWAPS[name]}", ast.Attribute(node.value, SWAPS[name], ast.Load())
        case ast.BinOp():
            yield from _of_operation(node, parent)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield f"-({ast.unparse(operand)}) -> without the minus", operand
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            yield (
                f"{ast.unparse(node)}: operator swapped",
                ast.Compare(node.left, [OPERATORS[type(op)]()], node.comparators),
            )
        case ast.BoolOp():
            yield f"{ast.unparse(node)}: and/or swapped", ast.BoolOp(OPERATORS[type(node.op)](), node.values)
        case ast.IfExp():
            yield f"{ast.unparse(node)}: branches swapped", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call():
            yield from _of_call(node)


def _of_operation(node: ast.BinOp, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    text = ast.unparse(node)
    if type(node.op) in OPERATORS:
        yield f"{text}: operator swapped", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        yield f"{text}: left dropped", node.right
        yield f"{text}: right dropped", node.left
    if isinstance(node.op, ast.Add | ast.Sub):
        for side in ("left", "right"):
            term = getattr(node, side)
            if not isinstance(term, ast.Constant):
                both = {"left": node.left, "right": node.right, side: triple(term)}
                yield f"{text}: {side} tripled", ast.BinOp(both["left"], node.op, both["right"])
    elif isinstance(node.op, ast.Mult | ast.Div | ast.Pow) and not isinstance(parent, ast.BinOp):
        yield f"{text}: tripled", triple(node)


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    text = ast.unparse(node)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("at", "eps", "q_sample", "posterior_mean", "to_x0"):
        yield f"{text}: tripled", triple(node)
    if name.rstrip("_") in LEFT_OUT:
        on_module = not isinstance(node.func, ast.Attribute) or ast.unparse(node.func.value) in ("math", "torch")
        if not on_module or node.args:
            yield f"{text}: {name} left out", node.args[0] if on_module else node.func.value
    simple = (ast.Name, ast.Attribute, ast.Call, ast.BinOp)
    for k in range(len(node.args) - 1):
        same = ast.dump(node.args[k]) == ast.dump(node.args[k + 1]) or name in ("maximum", "minimum")
        if isinstance(node.args[k], simple) and isinstance(node.args[k + 1], simple) and not same:
            args = [*node.args[:k], node.args[k + 1], node.args[k], *node.args[k + 2 :]]
            yield f"{text}: arguments {k} and {k + 1} swapped", ast.Call(node.func, args, node.keywords)


def places(node: ast.AST, path: tuple[tuple[str, int | None], ...] = ()) -> Iterator[tuple]:
    """(path, node, parent) of every expression that computes: no annotations, messages, docstrings or type aliases."""
    for field, value in ast.iter_fields(node):
        if field == "args" and isinstance(node, ast.Call) and isinstance(value, list):
            # Of the tensor that says what to be like only dtype, device and batch matter, the same for all at hand;
            # and all tables have one length.
            match ast.unparse(node.func).rpartition(".")[2]:
                case "at" | "log_variance":
                    value = value[:2]
                case "len" | "index":
                    value = []
        if field in ("annotation", "returns", "decorator_list", "bases", "exc", "func") and not (
            field == "func" and isinstance(value, ast.Attribute)
        ):
            continue
        for k, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            module_level = isinstance(node, ast.Module) and isinstance(child, ast.Assign)
            if module_level and isinstance(child.value, ast.List | ast.Subscript):  # type aliases
                continue
            step = (*path, (field, k if isinstance(value, list) else None))
            yield step, child, node
            yield from places(child, step)


def mutants_of(module: str) -> Iterator[Mutant]:
    text = (PACKAGE / f"{module}.py").read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    for path, node, parent in places(tree):
        for what, replacement in variants(node, parent):
            mutated = copy.deepcopy(tree)
            target: ast.AST = mutated
            for field, k in path[:-1]:
                target = getattr(target, field) if k is None else getattr(target, field)[k]
            field, k = path[-1]
            if k is None:
                setattr(target, field, copy.deepcopy(replacement))
            else:
                getattr(target, field)[k] = copy.deepcopy(replacement)
            line = getattr(node, "lineno", 0)
            yield Mutant(module, line, lines[line - 1].strip(), what, ast.fix_missing_locations(mutated))


def module_names() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
