"""How long it takes to find the cuts.

Three times. The exact cut: one solve over a graph that is already loaded, for random layered graphs
of up to 10 000 ops, every solve at other speeds and another link. The ladder: every sweep and the
choice of the nested chain. File to bundle: ResNet-50 with drawn weights, from the ONNX file to a
bundle on disk with its proof, on rows made up from the model's digest and with a cost profile that
is at hand (`--costs`), so that what is timed is the work and not the measuring.
"""

import time

import numpy as np

from bench import networks, stats
from bench.graphs import layered
from bench.report import Cell, Context, Figure, Result, Table
from bench.stats import Floats, Interval

_SIZES = (100, 300, 1000, 3000, 10_000)
_SECTION = __doc__.partition("\n\n")[2].strip()
