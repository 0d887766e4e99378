"""Random layered graphs: as large as asked for, shaped like networks rather than like noise.

Layers of one to eight parallel ops; each op reads one to three tensors, most from the layer before,
some from up to five layers back (skip connections). Sizes shrink with depth the way activations do.
"""

import numpy as np

from bench.stats import Floats
from dovetail_partitioner.graph import Graph, Op, TensorInfo


def layered(ops: int, seed: int) -> tuple[Graph, Floats]:
    """Make a graph and seconds for each of its ops.

    Args:
        ops: how many.
        seed: of the random choices.

    Returns:
        The graph, and float64 [ops]: what each op takes on the profiled machine.
    """
    rng = np.random.default_rng((seed, ops))
    tensors = {"x": TensorInfo("x", "float32", (1, 150528), 602112)}
    made: list[Op] = []
    layers: list[list[str]] = [["x"]]
    while len(made) < ops:
        width = min(int(rng.integers(1, 9)), ops - len(made))
        layer = []
        for _ in range(width):
            index = len(made)
            back = [layers[-1 - min(int(rng.geometric(0.7)) - 1, 4, len(layers) - 1)]]
            back += [layers[-1]] * int(rng.integers(0, 3))
            reads = dict.fromkeys(str(rng.choice(names)) for names in back)
            size = int(4 * rng.integers(256, 200_000) * (1 - 0.9 * index / ops))
            name = f"t{index}"
            tensors[name] = TensorInfo(name, "float32", (1, size // 4), size)
            made.append(Op(index, f"op{index}", "Conv", tuple(reads), (name,), 4 * size))
            layer.append(name)
        layers.append(layer)
    graph = Graph(tuple(made), tensors, ("x",), tuple(layers[-1]))
    return graph, rng.gamma(2.0, 50e-6, ops)
