"""Model in, bundle out: the whole way from an ONNX file to a proved ladder.

The steps and what each hands to the next:

    import    the file, untrusted, read in a sandbox          -> search graph, normalised model
    profile   seconds per op                                  -> cost profile
    search    exact min cuts over many links and devices      -> a nested chain of cuts
    emit      node fragments and weight blobs per segment     -> draft bundle, which runs
    calibrate ranges of everything that may cross             -> codec tables
    select    (cut, codec) pairs that win somewhere           -> rungs
    prove     cuts bit for bit, rungs against `quality`       -> proof
    write     one rename makes the bundle visible, then its cost profile beside it

Until that rename an interrupted or refused partition leaves what was there before.
"""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dovetail.api import Input, Quality
from dovetail.bundle import (
    Bundle,
    BundleConfig,
    BundleWriter,
    ModelInfo,
    RungSpec,
    Segment,
    WeightGroup,
    check_config,
)
from dovetail.encoding import Image, image_problem
from dovetail.errors import BundleError, ManifestError
from dovetail.ladder import CostProfile, Ladder
from dovetail.layout import canonical_json
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import FLOATS
from dovetail_partitioner.bind import declared_problem
from dovetail_partitioner.calibrate import Walks, fit_tables
from dovetail_partitioner.compare import Trial
from dovetail_partitioner.costs import (
    check_costs,
    check_cuts,
    cuts_of,
    host,
    measure_codecs,
    measure_ops,
    measure_segments,
)
from dovetail_partitioner.costs_file import COSTS_FILE, read_costs, write_costs
from dovetail_partitioner.emit import Emitted, emit
from dovetail_partitioner.graph import TensorInfo
from dovetail_partitioner.importer import Imported, import_model
from dovetail_partitioner.offer import Offer
from dovetail_partitioner.progress import Report, silent
from dovetail_partitioner.proof import (
    Exact,
    Proof,
    precision_of,
    prove_cuts,
    refuse_vacuous,
    repeats,
    row_wise,
)
from dovetail_partitioner.rows import Calibration, Rows, first_row, generated_rows, given_rows
from dovetail_partitioner.rungs import candidates, coded_bytes
from dovetail_partitioner.search import Chain, search
from dovetail_partitioner.whole import Answers, Model, load_whole

DEFAULT_SEGMENTS = 6

# What a float crossing tensor shrinks to, against float32: int8 codes; JPEG for a declared image.
_CODED = 1 / 4
_CODED_IMAGE = 1 / 24


@dataclass(frozen=True)
class Options:
    """What may be chosen when a model is partitioned.

    Attributes:
        bind: sizes of dynamic dimensions, by symbolic name or by `input:axis`.
        batch: size to bind the batch to; None leaves it symbolic where that works.
        image: the input that was made from 8-bit pixels, which allows pixel codecs.
        quality: how far a codec may change the answers.
        max_segments: most pieces the model is cut into.
        codecs: codecs that may be offered; None for all.
        threads: intra-op threads that times are measured with.
        declared: what a manifest says of the inputs, which must be so.
    """

    bind: Mapping[str, int] | None = None
    batch: int | None = None
    image: Image | None = None
    quality: Quality = field(default_factory=Quality)
    max_segments: int = DEFAULT_SEGMENTS
    codecs: Collection[str] | None = None
    threads: int = 1
    declared: tuple[Input, ...] = ()


@dataclass(frozen=True)
class PartitionResult:
    """What `partition` made.

    Attributes:
        path: the bundle's folder; the cost profile lies in it as `costs.json`.
        digest: the bundle's version.
        config: the bundle's description.
        costs: the cost profile.
        ladder: the rungs, priced with it.
        proof: the proof.
        considered: how many cuts were considered.
        notes: what people should know, such as why the model cannot be cut.
    """

    path: Path
    digest: str
    config: BundleConfig
    costs: CostProfile
    ladder: Ladder
    proof: Proof
    considered: int
    notes: tuple[str, ...]


def partition(
    model: Path | bytes,
    path: Path,
    *,
    name: str | None = None,
    calibration: Calibration | None = None,
    costs: Path | None = None,
    options: Options | None = None,
    report: Report = silent,
) -> PartitionResult:
    """Cut a model and write the proved bundle.

    Args:
        model: an ONNX file, or its bytes.
        path: folder of the bundle; one that is there is replaced in one step.
        name: served name; the file's name without its ending where None.
        calibration: rows to fit and prove on; generated from the model's digest where None.
        costs: a cost profile to use; measured where None.
        options: everything else.
        report: told of progress.

    Raises:
        ModelError: the model cannot be imported (its subclasses say why).
        CalibrationError: calibration rows do not fit the model.
        CostsError: the cost profile is of another model or of other segments.
        ProofVacuous: the model's answers do not vary over the calibration rows.
        ProofError: a cut is not right, or all-cloud is not the model.
        BundleError: something other than a bundle is at `path`.
        ManifestError: the model has other inputs than are declared.
    """
    with tempfile.TemporaryDirectory(prefix="dovetail-") as scratch, BundleWriter(path) as writer:
        chosen = options or Options()
        report("reading the model", 0, 1)
        imported = import_model(
            model,
            Path(scratch),
            bind=chosen.bind,
            batch=chosen.batch,
            sample=None if calibration is None else first_row(calibration),
        )
        if problem := declared_problem(chosen.declared, imported.inputs):
            raise ManifestError(problem)
        served = name or (model.stem if isinstance(model, Path) else "model")
        return _Work(imported, writer, served, chosen, report).make(path, calibration, costs)


def describe(
    imported: Imported, emitted: Emitted, writer: BundleWriter, name: str, image: Image | None
) -> BundleConfig:
    """Store the segments' blobs and describe them: a bundle that runs but has no rungs yet.

    Raises:
        BundleError: the image declaration does not fit the model's inputs.
    """
    header = writer.add(emitted.header)
    config = BundleConfig(
        model=ModelInfo(
            name=name,
            digest=imported.digest,
            weight_bytes=imported.weight_bytes,
            notes=imported.notes,
        ),
        header=header,
        inputs=imported.inputs,
        outputs=imported.outputs,
        tensors=emitted.tensors,
        segments=tuple(
            Segment(nodes=writer.add(part.nodes), reads=part.reads, writes=part.writes)
            for part in emitted.segments
        ),
        groups=tuple(
            WeightGroup(
                segments=group.segments,
                initializers=writer.add(group.initializers),
                data=writer.add_stream(group.data()) if group.data else None,
            )
            for group in emitted.groups
        ),
        batch=imported.batch,
        image=image,
        rungs=(),
        proof=header,  # a draft has none yet; it must only name some blob
    )
    check_config(config)
    return config


class _Work:
    """One partition under way: what is shared by the steps after the import."""

    def __init__(
        self,
        imported: Imported,
        writer: BundleWriter,
        name: str,
        options: Options,
        report: Report,
    ) -> None:
        self._imported, self._writer, self._name = imported, writer, name
        self._options, self._report = options, report
        self._precision = precision_of(imported.graph)

    def make(
        self, path: Path, calibration: Calibration | None, given: Path | None
    ) -> PartitionResult:
        old = read_costs(given) if given else None
        whole = self._whole(optimize=True)
        rows = self._rows(calibration, whole)
        answers = self._answers(whole, rows)
        refuse_vacuous(answers, self._imported.outputs)
        costs = old or self._measured_ops(rows)
        check_costs(costs, self._imported.digest, self._imported.graph)
        chain = self._chain(costs)
        emitted = emit(self._imported, chain.cuts)
        config = describe(self._imported, emitted, self._writer, self._name, self._options.image)
        del whole
        config, costs, proof = self._proved(config, costs, rows, answers, chain.regret)
        digest = self._writer.commit(config)
        costs = costs.model_copy(update={"bundle": digest})
        write_costs(path / COSTS_FILE, costs)
        return PartitionResult(
            path=path,
            digest=digest,
            config=config,
            costs=costs,
            ladder=Ladder.of(config, costs),
            proof=proof,
            considered=chain.considered,
            notes=self._imported.notes,
        )

    def _whole(self, *, optimize: bool) -> Model:
        # One thread: how work is shared out must not be able to change a proof's bytes.
        return load_whole(
            self._imported.model, self._imported.outputs, threads=1, optimize=optimize
        )

    def _rows(self, calibration: Calibration | None, whole: Model) -> Rows:
        specs, image = self._imported.inputs, self._options.image
        if image is not None and (problem := image_problem(image, specs)):
            raise BundleError(problem)
        if calibration is not None:
            return given_rows(calibration, specs)
        return generated_rows(specs, image, self._imported.digest, whole)

    def _answers(self, whole: Model, rows: Rows) -> list[Answers]:
        answers = []
        for done, row in enumerate(rows):
            self._report("asking the whole model", done, rows.count)
            answers.append(whole(row))
        return answers

    def _measured_ops(self, rows: Rows) -> CostProfile:
        threads = self._options.threads
        ops, whole = measure_ops(
            self._imported.model,
            self._imported.graph,
            next(iter(rows)),
            threads=threads,
            report=self._report,
        )
        return CostProfile(
            model=self._imported.digest, host=host(), threads=threads, ops=ops, whole=whole
        )

    def _chain(self, costs: CostProfile) -> Chain:
        self._report("searching cuts", 0, 1)
        seconds = [costs.ops[op.name] for op in self._imported.graph.ops]
        image = self._options.image

        def coded(tensor: TensorInfo) -> float:
            if image is not None and tensor.name == image.input:
                return tensor.nbytes * _CODED_IMAGE
            return tensor.nbytes * (_CODED if tensor.dtype in FLOATS else 1.0)

        return search(
            self._imported.graph,
            seconds,
            seconds,
            coded,
            max_segments=self._options.max_segments,
            cuttable=self._imported.cuttable,
        )

    def _proved(
        self,
        config: BundleConfig,
        costs: CostProfile,
        rows: Rows,
        answers: list[Answers],
        regret: float,
    ) -> tuple[BundleConfig, CostProfile, Proof]:
        draft = self._writer.draft(config)
        exact = self._exact(draft, rows)
        runtime = SegmentRuntime(draft, range(len(config.segments)))
        walks = Walks(config, runtime, rows)
        wise = row_wise(config, runtime, rows, report=self._report)
        config = config.model_copy(
            update={
                "affine": fit_tables(config, walks, report=self._report),
                "segments": tuple(
                    segment.model_copy(update={"row_wise": own})
                    for segment, own in zip(config.segments, wise, strict=True)
                ),
            }
        )
        costs, ladder = self._priced(draft, config, costs, walks)
        trial = Trial(config, runtime, walks, answers)
        offer = Offer(trial, self._precision, self._options.quality)
        rungs = offer.choose(ladder, repeatable=exact is not None, report=self._report)
        proof = Proof(
            model=self._imported.digest,
            rows=rows.digest,
            count=rows.count,
            generated=rows.generated,
            precision=self._precision,
            quality=self._options.quality,
            exact=exact,
            row_wise=wise,
            rungs={rung.id: offer.effects[rung.id] for rung in rungs},
            dropped=offer.dropped,
            regret=max(regret, offer.regret),
        )
        blob = self._writer.add(canonical_json(proof.model_dump(mode="json", by_alias=True)))
        return config.model_copy(update={"rungs": rungs, "proof": blob}), costs, proof

    def _exact(self, draft: Bundle, rows: Rows) -> Exact | None:
        """Part one of the proof; None for a model that answers differently each time."""
        whole = self._whole(optimize=False)
        if not self._imported.cuttable and not repeats(whole, next(iter(rows))):
            return None
        return prove_cuts(draft, whole, rows, self._precision, report=self._report)

    def _priced(
        self,
        draft: Bundle,
        config: BundleConfig,
        costs: CostProfile,
        walks: Walks,
    ) -> tuple[CostProfile, Ladder]:
        """Times and bytes of every candidate; times are measured unless the profile has them."""
        rungs = candidates(config, self._options.codecs)
        coded = coded_bytes(config, walks, rungs, report=self._report)
        if costs.segments:
            check_cuts(costs, config, rungs)
        else:
            envs = dict(next(iter(walks)))
            threads = self._options.threads
            segments = measure_segments(draft, envs[0], threads=threads, report=self._report)
            codecs = measure_codecs(config, envs, rungs, report=self._report)
            costs = costs.model_copy(
                update={"cuts": cuts_of(config), "segments": tuple(segments), "codecs": codecs}
            )
        specs = tuple(
            RungSpec(
                id=rung,
                cut=cut,
                codec=codec,
                bytes_up=coded[rung],
                bytes_down=sum(spec.nbytes for spec in config.remote_outputs(cut)),
                max_error=0.0,
                top1=None,
            )
            for rung, (cut, codec) in rungs.items()
        )
        return costs, Ladder.of(config.model_copy(update={"rungs": specs}), costs)
