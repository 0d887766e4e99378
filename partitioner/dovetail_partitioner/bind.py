"""Binds a model's dynamic dimensions, and leaves one batch dimension symbolic where it can.

Costs, codecs and contracts need sizes, so a dimension that nobody bound is an error that says how
to bind it. The batch is the exception: a tail answers better when it can put waiting requests
together, and that needs nothing but axis 0 to be free in every input. Where an input has no such
axis (a sampling rate, a recurrent state), rows cannot be stacked, and batch is bound to 1.
"""

from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from dovetail.api import Input
from dovetail.errors import UnboundShape, UnsupportedModel
from dovetail.tensor import TensorSpec

# Per input and axis: what a dimension without a size is called, None where it has one.
Names = Mapping[str, list[str | None]]


def bind_inputs(
    model: ModelProto,
    bind: Mapping[str, int],
    batch: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str | None, tuple[str, ...]]:
    """Bind the input dimensions of `model` in place.

    Args:
        model: a normalised model.
        bind: size by symbolic name, or by `input:axis` for a dimension without a name.
        batch: size to bind the batch to; None leaves it symbolic where possible.
        shapes: shapes of one row of example inputs by name, which bind what `bind` does not;
            empty where there is none.

    Returns:
        The name of the batch dimension, None where it is bound, and notes for people.

    Raises:
        UnboundShape: a dimension other than the batch is not bound, or `bind` names none.
        UnsupportedModel: an input that is no tensor.
    """
    inputs = model.graph.input
    names = {value.name: _dim_names(value) for value in inputs}
    _check_bind(bind, names)
    for value in inputs:
        for axis, name in _open(names, value.name):
            size = bind.get(f"{value.name}:{axis}", bind.get(name))
            if size is not None:
                _set(value, axis, size, names)
    symbol = _batch_name(names)
    for value in inputs:
        _bind_others(value, names, symbol, shapes.get(value.name, ()))
    if symbol is None:
        return None, ()
    if batch is None and _stackable(names):
        for value in inputs:
            value.type.tensor_type.shape.dim[0].dim_param = symbol
        return symbol, ()
    notes = () if batch is not None else (_why_not_stackable(names, symbol),)
    for value in inputs:
        for axis, _ in _open(names, value.name):
            _set(value, axis, batch or 1, names)
    return None, notes


def fix_batch(model: ModelProto, symbol: str) -> None:
    """Bind a batch dimension that was left symbolic to 1."""
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_value = 1


def _dim_names(value: ValueInfoProto) -> list[str | None]:
    """Per axis: the symbolic name, `input:axis` where it has none, None where it has a size."""
    if not value.type.HasField("tensor_type"):
        raise UnsupportedModel(
            f"input {value.name!r} is no tensor but a {value.type.WhichOneof('value')}; only "
            "tensors can be sent"
        )
    if not value.type.tensor_type.HasField("shape"):
        raise UnboundShape(
            f"input {value.name!r} declares no shape; export the model with one, dimensions may "
            "be symbolic"
        )
    return [
        None if dim.dim_value > 0 else _name(dim.dim_param) or f"{value.name}:{axis}"
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    ]


def _name(symbol: str) -> str:
    """The symbol, unless it is one that exporters write for every unknown size."""
    return "" if symbol in {"?", "None", "-1"} else symbol


def _check_bind(bind: Mapping[str, int], names: Names) -> None:
    known = {name for dims in names.values() for name in dims if name}
    known.update(f"{key}:{axis}" for key, dims in names.items() for axis in range(len(dims)))
    for name, size in bind.items():
        if name not in known:
            dynamic = sorted({name for dims in names.values() for name in dims if name})
            raise UnboundShape(
                f"no dimension is called {name!r}; the model's dynamic dimensions are {dynamic}"
            )
        if size < 1:
            raise UnboundShape(f"dimension {name!r} is bound to {size}; a size is at least 1")


def _open(names: Names, key: str) -> list[tuple[int, str]]:
    """Axes of an input that have no size yet, and what they are called."""
    return [(axis, name) for axis, name in enumerate(names[key]) if name]


def _set(value: ValueInfoProto, axis: int, size: int, names: Names) -> None:
    value.type.tensor_type.shape.dim[axis].dim_value = size
    names[value.name][axis] = None


def _bind_others(
    value: ValueInfoProto, names: Names, symbol: str | None, example: tuple[int, ...]
) -> None:
    """Bind what is not the batch to the example's sizes; an error where there is none."""
    for axis, name in _open(names, value.name):
        if name == symbol or (axis == 0 and _unnamed(name, names)):
            continue
        if axis >= len(example):
            raise UnboundShape(
                f"input {value.name!r}, axis {axis} has the dynamic size {name!r}; bind it with "
                f"`--dim {name}=SIZE`"
            )
        _set(value, axis, example[axis], names)


def _unnamed(name: str, dims: Names) -> bool:
    head, _, axis = name.rpartition(":")
    return head in dims and axis == "0"


def _batch_name(names: Names) -> str | None:
    """The first named symbolic dimension on axis 0; `batch` where those have no name."""
    leading = [dims[0] for dims in names.values() if dims and dims[0]]
    named = [name for name in leading if not _unnamed(name, names)]
    if leading and not named:
        return "batch"
    return named[0] if named else None


def _stackable(names: Names) -> bool:
    return all(dims and dims[0] and not any(dims[1:]) for dims in names.values())


def _why_not_stackable(names: Names, symbol: str) -> str:
    odd = [key for key, dims in names.items() if not (dims and dims[0]) or any(dims[1:])]
    return (
        f"batch dimension {symbol!r} is bound to 1: axis 0 of input {odd[0]!r} is not the batch, "
        "so requests cannot be stacked"
    )


def declared_problem(declared: Iterable[Input], inputs: Sequence[TensorSpec]) -> str | None:
    """What a manifest says of the inputs that is not so; None where all of it is.

    Args:
        declared: names, and shapes where given, whose first size may be 0 for a free batch.
        inputs: the imported model's, every size bound but perhaps the batch's.
    """
    shapes = {spec.name: spec.shape for spec in inputs}
    for one in declared:
        if one.name not in shapes:
            return f"spec.inputs names {one.name!r}, but the model's inputs are {sorted(shapes)}"
        has, says = shapes[one.name], one.shape
        if says is not None and not _agree(says, has):
            wrong = f"spec.inputs gives {one.name!r} the shape {list(says)}"
            return f"{wrong}; the model's is {list(has)}"
    return None


def _agree(says: Sequence[int], has: Sequence[int | str]) -> bool:
    return len(says) == len(has) and all(
        size in (0, own) for size, own in zip(says, has, strict=True)
    )
