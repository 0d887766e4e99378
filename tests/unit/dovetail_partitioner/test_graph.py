"""The search graph and its contraction."""

from hypothesis import given
from hypothesis import strategies as st

from dovetail_partitioner.fuse import fuse
from dovetail_partitioner.graph import Graph, Op, TensorInfo, expand, quotient

KINDS = ["Conv", "Relu", "Add", "Softmax", "MatMul", "Concat", "Split"]
KINDS += ["DynamicQuantizeLinear", "DequantizeLinear", "QuantizeLinear"]


def tensor(name: str, nbytes: int) -> TensorInfo:
    if name.startswith("q"):
        return TensorInfo(name, "uint8", (nbytes,), nbytes)
    return TensorInfo(name, "float32", (nbytes // 4,), nbytes)


def build(
    ops: list[tuple[str, list[str], list[str]]], outputs: list[str], sizes: dict[str, int]
) -> Graph:
    """A graph from (type, reads, writes); a tensor is 64 bytes unless `sizes` says otherwise.

    Tensors are float32; those whose name begins with q are uint8.
    """
    made = [name for _, _, writes in ops for name in writes]
    tensors = {name: tensor(name, sizes.get(name, 64)) for name in ["x", *made]}
    return Graph(
        tuple(
            Op(i, f"op{i}", kind, tuple(reads), tuple(writes))
            for i, (kind, reads, writes) in enumerate(ops)
        ),
        tensors,
        ("x",),
        tuple(outputs),
    )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """DAGs of ops that contraction knows and does not know."""
    names = ["x"]
    ops = []
    for index in range(draw(st.integers(1, 25))):
        reads = draw(st.lists(st.sampled_from(names[-6:]), min_size=1, max_size=3, unique=True))
        writes = [f"t{index}.{j}" for j in range(draw(st.integers(1, 2)))]
        ops.append((draw(st.sampled_from(KINDS)), reads, writes))
        names += writes
    sizes = {name: draw(st.sampled_from([16, 64, 256])) for name in names}
    middle = draw(st.lists(st.sampled_from(names[1:]), max_size=2))
    return build(ops, list(dict.fromkeys([*middle, names[-1]])), sizes)


def grouped(graph: Graph) -> list[list[str]]:
    """Op types by group."""
    return [[graph.ops[index].op_type for index in group] for group in fuse(graph)]


@given(graphs())
def test_every_prefix_of_groups_is_a_downset_of_ops(graph: Graph) -> None:
    """Verify that contraction partitions the ops, acyclically and in order."""
    groups = fuse(graph)

    assert sorted(index for group in groups for index in group) == list(range(len(graph.ops)))
    for depth in range(len(groups) + 1):
        assert graph.is_downset(expand(groups, range(depth)))


@given(graphs())
def test_the_quotient_crosses_what_the_graph_crosses(graph: Graph) -> None:
    """Verify that a cut between groups moves the same tensors in both graphs."""
    groups = fuse(graph)
    small = quotient(graph, groups)

    for depth in range(len(groups) + 1):
        ops = expand(groups, range(depth))
        assert set(small.crossing(range(depth))) == set(graph.crossing(ops))
        assert small.remote_outputs(range(depth)) == graph.remote_outputs(ops)


def test_conv_with_activation_is_one_group() -> None:
    """Verify that Conv, batch norm and SiLU, whose input fans out, stay together."""
    graph = build(
        [
            ("Conv", ["x"], ["a"]),
            ("BatchNormalization", ["a"], ["b"]),
            ("Sigmoid", ["b"], ["s"]),
            ("Mul", ["b", "s"], ["y"]),
            ("Conv", ["y"], ["z"]),
        ],
        ["z"],
        {},
    )

    assert grouped(graph) == [["Conv", "BatchNormalization", "Sigmoid", "Mul"], ["Conv"]]


def test_a_norm_whose_input_is_also_a_skip_stands_alone() -> None:
    """Verify that a cut can lie on the residual stream, before a decomposed layer norm."""
    graph = build(
        [
            ("MatMul", ["x"], ["h"]),
            ("ReduceMean", ["h"], ["m"]),
            ("Sub", ["h", "m"], ["d"]),
            ("Pow", ["d"], ["p"]),
            ("ReduceMean", ["p"], ["v"]),
            ("Sqrt", ["v"], ["s"]),
            ("Div", ["d", "s"], ["n"]),
            ("MatMul", ["n"], ["o"]),
            ("Add", ["h", "o"], ["y"]),
        ],
        ["y"],
        {},
    )

    norm = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Sqrt", "Div"]
    assert grouped(graph) == [["MatMul"], norm, ["MatMul", "Add"]]


def test_a_quantised_unit_is_cut_at_its_codes() -> None:
    """Verify that DequantizeLinear, the op and QuantizeLinear are one group."""
    sizes = {"q0": 16, "q1": 16, "q2": 16}
    graph = build(
        [
            ("QuantizeLinear", ["x"], ["q0"]),
            ("DequantizeLinear", ["q0"], ["d0"]),
            ("Conv", ["d0"], ["c"]),
            ("Relu", ["c"], ["r"]),
            ("QuantizeLinear", ["r"], ["q1"]),
            ("DequantizeLinear", ["q1"], ["d1"]),
            ("Conv", ["d1"], ["e"]),
            ("QuantizeLinear", ["e"], ["q2"]),
        ],
        ["q2"],
        sizes,
    )

    assert grouped(graph) == [
        ["QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "QuantizeLinear"],
        ["DequantizeLinear", "Conv", "QuantizeLinear"],
    ]


def test_the_input_in_another_dress_is_no_place_to_cut() -> None:
    """Verify that scaling joins what it feeds: behind it the raw input would pass as masked."""
    graph = build(
        [("Sub", ["x"], ["a"]), ("Cast", ["a"], ["b"]), ("Conv", ["b"], ["y"])], ["y"], {"y": 16}
    )

    assert grouped(graph) == [["Sub", "Cast", "Conv"]]


def test_an_input_of_which_a_part_is_kept_is_a_place_to_cut() -> None:
    """Verify that an op that drops values stands alone, though it reads the input only."""
    graph = build([("ReduceMean", ["x"], ["a"]), ("Conv", ["a"], ["y"])], ["y"], {"a": 16})

    assert grouped(graph) == [["ReduceMean"], ["Conv"]]


def test_a_dynamically_quantised_input_stays_with_all_its_readers() -> None:
    """Verify that codes, scale and zero point never part."""
    graph = build(
        [
            ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            ("MatMulInteger", ["q", "z"], ["a"]),
            ("MatMulInteger", ["q", "z"], ["b"]),
            ("Mul", ["a", "s"], ["c"]),
            ("Mul", ["b", "s"], ["d"]),
            ("Concat", ["c", "d"], ["y"]),
        ],
        ["y"],
        {"q": 16},
    )

    assert [len(group) for group in fuse(graph)] == [5, 1]


def test_an_op_that_enlarges_does_not_join_its_maker() -> None:
    """Verify that the narrow place before an Expand stays a place to cut."""
    graph = build(
        [("Conv", ["x"], ["a"]), ("Expand", ["a"], ["b"]), ("Conv", ["b"], ["y"])],
        ["y"],
        {"a": 16, "b": 64},
    )

    assert grouped(graph) == [["Conv"], ["Expand"], ["Conv"]]
