"""Random ONNX models that hold what makes cutting hard."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

KINDS = ["linear", "add", "tanh", "reshape", "fill", "gen", "if", "dq"]
WIDTH = 20  # a WIDTH x WIDTH float32 weight is larger than what stays inline


@dataclass
class Builder:
    """Grows a model; every tensor in `pool` is float32 [b, WIDTH]."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    pool: list[str] = field(default_factory=list)

    def add(self, op_type: str, reads: list[str], **attributes: object) -> str:
        """Append a node with one output and return the output's name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, reads, [name], name=f"n{name}", **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """Declare a weight once and return its name."""
        self.weights.setdefault(name, value)
        return name

    def square(self, which: int) -> str:
        """One of few large weights, so that segments share them; two are equal in content."""
        rng = np.random.default_rng(which // 2)
        return self.constant(f"w{which}", rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))

    def linear(self, x: str, which: int) -> str:
        """MatMul with a shared weight, then a small bias."""
        bias = self.constant("bias", np.linspace(-1, 1, WIDTH, dtype=np.float32))
        return self.add("Add", [self.add("MatMul", [x, self.square(which)]), bias])

    def reshaped(self, x: str, source: str) -> str:
        """A round trip through [b, 4, 5] whose target is read off the shape of `source`."""
        rows = self.add(
            "Gather", [self.add("Shape", [source]), self.constant("zero", np.array([0]))]
        )
        tail = self.constant("tail", np.array([4, 5]))
        deep = self.add("Reshape", [x, self.add("Concat", [rows, tail], axis=0)])
        flat = self.add("Concat", [rows, self.constant("rest", np.array([-1]))], axis=0)
        return self.add("Reshape", [self.add("Relu", [deep]), flat])

    def filled(self, x: str, source: str) -> str:
        """Add a fill that has the shape of `source`: a generator shaped by the batch."""
        value = helper.make_tensor("v", 1, [1], [0.25])
        return self.add(
            "Add", [x, self.add("ConstantOfShape", [self.add("Shape", [source])], value=value)]
        )

    def generated(self, x: str) -> str:
        """MatMul with a generated weight."""
        shape = self.constant("square", np.array([WIDTH, WIDTH]))
        value = helper.make_tensor("v", 1, [1], [0.125])
        return self.add("MatMul", [x, self.add("ConstantOfShape", [shape], value=value)])

    def branched(self, x: str, other: str, which: int) -> str:
        """An If on the data whose bodies capture two outer tensors and a shared weight."""
        low = self.add("ReduceMean", [x], keepdims=0)
        condition = self.add("Greater", [low, self.constant("limit", np.array(0.0, np.float32))])

        def body(op_type: str, reads: list[str]) -> onnx.GraphProto:
            node = helper.make_node(op_type, reads, ["inner"])
            out = helper.make_tensor_value_info("inner", 1, None)
            return helper.make_graph([node], "body", [], [out])

        return self.add(
            "If",
            [condition],
            then_branch=body("MatMul", [x, self.square(which)]),
            else_branch=body("Sub", [x, other]),
        )

    def quantised(self, x: str) -> str:
        """A dynamically quantised round trip."""
        name = f"t{len(self.nodes)}"
        outs = [f"{name}q", f"{name}s", f"{name}z"]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], outs, name=f"n{name}"))
        return self.add("DequantizeLinear", outs)


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """Models with skips, shared weights, shape reads, fills, If, early outputs, two inputs."""
    made = Builder()
    inputs = ["x0", "x1"][: draw(st.integers(1, 2))]
    made.pool += inputs
    for _ in range(draw(st.integers(2, 9))):
        x, other = draw(st.sampled_from(made.pool[-3:])), draw(st.sampled_from(made.pool))
        which = draw(st.integers(0, 2))
        kind = draw(
            st.sampled_from(["linear", "add", "tanh", "reshape", "fill", "gen", "if", "dq"])
        )
        made.pool.append(
            {
                "linear": lambda x=x, which=which: made.linear(x, which),
                "add": lambda x=x, other=other: made.add("Add", [x, other]),
                "tanh": lambda x=x: made.add("Tanh", [x]),
                "reshape": lambda x=x, other=other: made.reshaped(x, other),
                "fill": lambda x=x, other=other: made.filled(x, other),
                "gen": lambda x=x: made.generated(x),
                "if": lambda x=x, other=other, which=which: made.branched(x, other, which),
                "dq": lambda x=x: made.quantised(x),
            }[kind]()
        )
    early = draw(st.sampled_from(made.pool[len(inputs) :]))
    outputs = list(dict.fromkeys([early, made.pool[-1]]))
    dynamic = draw(st.booleans())
    shape = ["b" if dynamic else 1, WIDTH]
    graph = helper.make_graph(
        made.nodes,
        "random",
        [helper.make_tensor_value_info(name, 1, shape) for name in inputs],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in made.weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
