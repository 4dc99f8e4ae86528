"""`evo2 embed`: embed every sequence, write the vectors, and probe the layers."""

import json
import zlib
from functools import partial
from typing import Any

from evo2cli import __version__, console
from evo2cli.embed.input import (
    FeatureIndex,
    InputSequence,
    InputSummary,
    OutputRow,
    read_feature_index,
    read_sequences,
    rows_of,
    summarize_input,
)
from evo2cli.embed.options import SUFFIXES, EmbedOptions, Pooling
from evo2cli.embed.probe import Labelled, draw_probe, match_labels, probe_layers, read_labels
from evo2cli.embed.store import Contents, Store, open_store
from evo2cli.errors import counted
from evo2cli.figures import check_plot
from evo2cli.files import check_file, check_output, locks_output
from evo2cli.genome.parquet import import_pyarrow
from evo2cli.journal import Recall, open_journal
from evo2cli.models import DTYPES, open_model, warn_beyond_context
from evo2cli.options import DType
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.float8.inference import float8_parts
from stripedhyena2.layers import layer_widths, resolve_layers
from stripedhyena2.pooling import keep_positions, pool_positions
from stripedhyena2.progress import Progress


@locks_output
def embed(options: EmbedOptions) -> dict[str, Any]:
    """Embed every sequence independently, write the vectors, and probe the layers if requested.

    Returns:
        evo2cli, model, fingerprint, dtype, pooling, strand; layers: number of channels by name;
        sequences, bases and vectors: their numbers; output: path or None; probe: the result of
        `probe_layers` or None.

    Raises:
        UserError: The input, the model, the labels or an output cannot be used.
        UntrustedNumericsError: A vector is not finite.
    """
    _check_files(options)
    index = read_feature_index(options)
    summary = summarize_input(options, index)
    _report_input(summary, index)
    labelled = _read_labels(options, summary)
    model = open_model(options)
    contents = _contents(options, model, summary)
    settings = ["evo2 embed", __version__, contents.metadata["fingerprint"]]
    with (
        open_store(options.output, contents) as store,
        open_journal(options.output, settings, restart=store.is_new) as recall,
    ):
        store.prepare()
        _fill(options, model, store, index, recall)
        probed = None if labelled is None else _probe(options, store, labelled)
        if options.output is not None:
            store.write_to(options.output)
    if options.plot is not None and probed is not None:
        draw_probe(options.plot, probed)
    return {
        **contents.metadata,
        "layers": dict(contents.layers),
        "sequences": len(summary.sequences),
        "bases": summary.num_bases,
        "vectors": summary.num_bases if contents.by_position else len(summary.rows),
        "output": options.output and str(options.output),
        "probe": probed,
    }


def _check_files(options: EmbedOptions) -> None:
    """Refuse outputs that cannot be written, before the model runs.

    Raises:
        UserError: An output cannot be written.
    """
    if options.output is not None:
        check_file(options.output, "--output", SUFFIXES)
        if options.output.suffix == ".parquet":
            import_pyarrow(options.output)
        inputs = (options.source, options.reference, options.features, options.probe)
        check_output(options.output, *inputs)
    check_plot(options.plot)


def _report_input(summary: InputSummary, index: FeatureIndex | None) -> None:
    if summary.num_ambiguous:
        console.warn(
            f"{summary.num_ambiguous:,} of {counted(len(summary.sequences), 'sequence')}: with "
            "letters other than A, C, G and T; they are passed to the model unchanged"
        )
    if index is not None and summary.num_features < len(index):
        console.say(
            f"{summary.num_features:,} of {counted(len(index), 'feature')} entirely within a "
            "sequence; the others are left out"
        )


def _read_labels(options: EmbedOptions, summary: InputSummary) -> Labelled | None:
    """Read the labels and match them to vectors; None without --probe.

    Raises:
        UserError: The labels cannot be read, match no vector, or are too few for the folds.
    """
    if options.probe is None:
        return None
    labels = read_labels(options.probe)
    labelled = match_labels(options.probe, labels, [name for name, _ in summary.rows])
    labelled.folds(options.folds, options.seed)
    if len(labelled.rows) < max(len(summary.rows), len(labels)):
        console.say(
            f"{options.probe}: labels for {len(labelled.rows):,} of "
            f"{counted(len(summary.rows), 'vector')}, of {counted(len(labels), 'label')}"
        )
    return labelled


def _contents(options: EmbedOptions, model: StripedHyena2, summary: InputSummary) -> Contents:
    layers = resolve_layers(model, options.layers)
    longest = max(length for _, length in summary.sequences)
    warn_beyond_context(model, longest, f"a sequence of {longest:,} bases")
    if layers == ["embedding"]:
        console.warn("the layer embedding encodes each base on its own, without its context")
    dtype = model.embedding.weight.dtype
    names = {dtype: name for name, dtype in DTYPES.items()}
    return Contents(
        summary=summary,
        layers=layer_widths(model, layers),
        by_position=options.pooling is Pooling.NONE,
        by_feature=options.features is not None,
        metadata={
            "evo2cli": __version__,
            "model": options.model,
            "fingerprint": fingerprint(model.config, model.state_dict()),
            "dtype": DType.FP8 if float8_parts(model) else names.get(dtype, str(dtype)),
            "layers": json.dumps(layers),
            "pooling": options.pooling,
            "strand": options.strand,
        },
    )


def _fill(
    options: EmbedOptions,
    model: StripedHyena2,
    store: Store,
    index: FeatureIndex | None,
    recall: Recall,
) -> None:
    """Embed all sequences that are not in the journal of an interrupted run."""
    first = 0
    with console.progress("embed", store.contents.summary.num_bases, "bases") as bar:
        embed_one = partial(_embed_sequence, options, model, store, bar.advance)
        for sequence in read_sequences(options):
            rows = rows_of(sequence, index)
            if not rows:
                continue
            spans = repr([row.spans for row in rows]).encode()
            letters = zlib.crc32(sequence.tag + sequence.bases)
            key = f"{sequence.name} {letters:08x} {zlib.crc32(spans):08x}"
            recall(key, partial(embed_one, sequence, rows, first))
            first += len(rows)


def _embed_sequence(
    options: EmbedOptions,
    model: StripedHyena2,
    store: Store,
    progress: Progress,
    sequence: InputSequence,
    rows: list[OutputRow],
    first: int,
) -> None:
    """Embed a sequence and store its vectors; pooled vectors go to the rows from `first` on."""
    contents, bases, strands = store.contents, sequence.bases, options.strand.single
    arrays = {layer: store.arrays[contents.key(layer, sequence.name)] for layer in contents.layers}
    common: dict[str, Any] = {"name": sequence.name, "context": sequence.tag, "progress": progress}
    if contents.by_position:
        keep_positions(model, bases, arrays, strands, **common)
        return
    spans = [row.spans for row in rows]
    vectors = pool_positions(
        model, bases, contents.layers, spans, options.pooling, strands, **common
    )
    for layer, vectors_RD in vectors.items():
        arrays[layer].write(first, vectors_RD)


def _probe(options: EmbedOptions, store: Store, labelled: Labelled) -> dict[str, Any]:
    vectors = {layer: store.arrays[layer].all() for layer in store.contents.layers}
    with console.progress("probe", len(vectors), "layers") as bar:
        return probe_layers(
            vectors, labelled, folds=options.folds, seed=options.seed, progress=bar.advance
        )
