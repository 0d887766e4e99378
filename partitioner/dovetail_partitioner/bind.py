"""Binds a model's dynamic dimensions, and leaves one batch dimension symbolic where it can.

Costs, codecs and contracts need sizes, so a dimension that nobody bound is an error that says how
to bind it. The batch is the exception: a tail answers better when it can put waiting requests
together, and that needs nothing but axis 0 to be free in every input. Where an input has no such
axis (a sampling rate, a recurrent state), rows cannot be stacked, and batch is bound to 1.
"""

from collections.abc import Mapping

from onnx import ModelProto, ValueInfoProto

from dovetail.errors import UnboundShape, UnsupportedModel


def bind_inputs(
    model: ModelProto, bind: Mapping[str, int], batch: int | None
) -> tuple[str | None, tuple[str, ...]]:
    """Bind the input dimensions of `model` in place.

    Args:
        model: a normalised model.
        bind: size by symbolic name, or by `input:axis` for a dimension without a name.
        batch: size to bind the batch to; None leaves it symbolic where possible.

    Returns:
        The name of the batch dimension, None where it is bound, and notes for people.

    Raises:
        UnboundShape: a dimension other than the batch is not bound, or `bind` names none.
        UnsupportedModel: an input that is no tensor.
    """
    names = {value.name: _dim_names(value) for value in model.graph.input}
    _check_bind(bind, names)
    for value in model.graph.input:
        for axis, name in enumerate(names[value.name]):
            size = bind.get(f"{value.name}:{axis}", bind.get(name) if name else None)
            if name and size is not None:
                _set(value, axis, size)
                names[value.name][axis] = None
    symbol = _batch_name(names)
    _refuse_others(names, symbol)
    if symbol is None:
        return None, ()
    if batch is None and _stackable(names):
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_param = symbol
        return symbol, ()
    notes = () if batch is not None else (_why_not_stackable(names, symbol),)
    for value in model.graph.input:
        for axis, name in enumerate(names[value.name]):
            if name:
                _set(value, axis, batch or 1)
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
        None if dim.dim_value > 0 else dim.dim_param or f"{value.name}:{axis}"
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    ]


def _check_bind(bind: Mapping[str, int], names: Mapping[str, list[str | None]]) -> None:
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


def _set(value: ValueInfoProto, axis: int, size: int) -> None:
    value.type.tensor_type.shape.dim[axis].dim_value = size


def _unnamed(name: str, dims: Mapping[str, list[str | None]]) -> bool:
    head, _, axis = name.rpartition(":")
    return head in dims and axis == "0"


def _batch_name(names: Mapping[str, list[str | None]]) -> str | None:
    """The first named symbolic dimension on axis 0; `batch` where those have no name."""
    leading = [dims[0] for dims in names.values() if dims and dims[0]]
    named = [name for name in leading if not _unnamed(name, names)]
    if leading and not named:
        return "batch"
    return named[0] if named else None


def _refuse_others(names: Mapping[str, list[str | None]], symbol: str | None) -> None:
    for key, dims in names.items():
        for axis, name in enumerate(dims):
            if name and name != symbol and not (axis == 0 and _unnamed(name, names)):
                raise UnboundShape(
                    f"input {key!r}, axis {axis} has the dynamic size {name!r}; bind it with "
                    f"`--dim {name}=SIZE`"
                )


def _stackable(names: Mapping[str, list[str | None]]) -> bool:
    return all(dims and dims[0] and not any(dims[1:]) for dims in names.values())


def _why_not_stackable(names: Mapping[str, list[str | None]], symbol: str) -> str:
    odd = [key for key, dims in names.items() if not (dims and dims[0]) or any(dims[1:])]
    return (
        f"batch dimension {symbol!r} is bound to 1: axis 0 of input {odd[0]!r} is not the batch, "
        "so requests cannot be stacked"
    )
