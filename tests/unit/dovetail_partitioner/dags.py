"""Small search graphs of any shape."""

from itertools import chain

from hypothesis import strategies as st

from dovetail_partitioner.graph import Graph, Op, TensorInfo


def graph_of(reads: list[tuple[str, ...]], inputs: int, writes: list[int]) -> Graph:
    """Ops `i` that read named tensors and write `t<i>.0`, `t<i>.1`, …"""
    made = [tuple(f"t{i}.{j}" for j in range(count)) for i, count in enumerate(writes)]
    ops = tuple(
        Op(i, f"op{i}", "Op", read, write)
        for i, (read, write) in enumerate(zip(reads, made, strict=True))
    )
    given_names = tuple(f"x{i}" for i in range(inputs))
    names = chain(given_names, *made)
    tensors = {name: TensorInfo(name, "float32", (1,), 4) for name in names}
    return Graph(ops, tensors, given_names, made[-1])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """DAGs of up to nine ops; some ops read only the newest tensor, so that gates appear."""
    inputs = draw(st.integers(1, 2))
    names = [f"x{i}" for i in range(inputs)]
    reads, writes = [], []
    for index in range(draw(st.integers(1, 9))):
        count = draw(st.integers(1, 2))
        newest = draw(st.booleans())
        read = [names[-1]] if newest else draw(st.lists(st.sampled_from(names), max_size=3))
        reads.append(tuple(dict.fromkeys(read)))
        writes.append(count)
        names += [f"t{index}.{j}" for j in range(count)]
    return graph_of(reads, inputs, writes)
