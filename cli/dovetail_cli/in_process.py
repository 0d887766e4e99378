"""One rung in one process: what device and cloud do, without a network between them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.bundle import Bundle
from dovetail.codecs import CodecSet
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array, check_inputs


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Attributes:
        outputs: the model's outputs by name.
        bytes_up: bytes that would have gone up, 0 on the edge rung.
        head: seconds of the segments on the device.
        encode: seconds to encode the crossing tensors.
        decode: seconds to decode them.
        tail: seconds of the segments in the cloud.
    """

    outputs: Mapping[str, Array]
    bytes_up: int
    head: float
    encode: float
    decode: float
    tail: float


def run_rung(bundle: Bundle, rung_id: str, feed: Mapping[str, Array]) -> Answer:
    """Answer a request on a rung.

    Args:
        bundle: the bundle.
        rung_id: the rung.
        feed: arrays by input name; any batch the model takes.

    Raises:
        UnknownRung: the bundle has no such rung.
        InvalidTensor: an input is missing, unknown, or of the wrong dtype or shape.
        BundleCorrupt: a blob does not have the digest it is named by.
    """
    config = bundle.config
    rung, last = config.rung(rung_id), len(config.segments)
    check_inputs(config.inputs, feed)
    runtime = SegmentRuntime(bundle, (rung.cut,))
    env, head = runtime.run(feed, 0, rung.cut)
    names, codecs = config.crossing(rung.cut), CodecSet(config)
    begin = time.perf_counter()
    sent = tuple(codecs.pack(rung.codec, env, names))
    middle = time.perf_counter()
    received = codecs.unpack(rung.codec, names, sent)
    end = time.perf_counter()
    tail, seconds = runtime.run(received, rung.cut, last)
    return Answer(
        outputs={s.name: tail[s.name] if s.name in tail else env[s.name] for s in config.outputs},
        bytes_up=sum(len(tensor.data) for tensor in sent),
        head=head,
        encode=middle - begin,
        decode=end - middle,
        tail=seconds,
    )
