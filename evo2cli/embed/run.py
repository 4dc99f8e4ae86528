"""`evo2 embed`: vectors of sequences, or of features in them, from the layers of a model."""

import json
import zlib
from functools import partial
from typing import Any

from evo2cli import __version__, console
from evo2cli.embed.input import (
    FeatureIndex,
    Passage,
    Row,
    Survey,
    read_index,
    read_passages,
    rows_of,
    survey,
)
from evo2cli.embed.options import EmbedOptions, Pooling
from evo2cli.embed.pooling import Embedder
from evo2cli.embed.probe import draw_probe, match_labels, probe_layers
from evo2cli.embed.store import Plan, Store, open_store
from evo2cli.journal import Recall, open_journal
from evo2cli.models import DTYPES, FP8, open_model
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.float8.inference import has_scales
from stripedhyena2.layers import layer_widths, resolve_layers


def embed(options: EmbedOptions) -> dict[str, Any]:
    """Embed every sequence by itself, write the vectors, and probe them if that is asked for.

    Returns:
        evo2cli, model, fingerprint, dtype, pooling, strand; layers: channels of each; sequences,
        bases and vectors: how many there are; output (None without); probe: what `probe_layers`
        returns (None without).

    Raises:
        UserError: The input, the model, the labels or an output will not do.
        UntrustedNumericsError: A vector is no finite number.
    """
    index = read_index(options)
    found = survey(options, index)
    labelled = match_labels(options, [name for name, _ in found.rows])
    model = open_model(
        options.model, config=options.config, device=options.device, dtype=options.dtype
    )
    plan = _plan(options, model, found)
    settings = ["evo2 embed", __version__, plan.about["fingerprint"]]
    with (
        open_store(options.output, plan) as store,
        open_journal(options.output, settings, anew=store.is_fresh) as recall,
    ):
        store.prepare()
        _fill(options, model, store, index, recall)
        probed = None
        if labelled is not None:
            vectors = {layer: store.arrays[layer].all() for layer in plan.layers}
            probed = probe_layers(vectors, labelled, folds=options.folds, seed=options.seed)
        if options.output is not None:
            store.write_as(options.output)
    if options.plot is not None and probed is not None:
        draw_probe(options.plot, probed)
    return _result(options, plan, probed)


def _plan(options: EmbedOptions, model: StripedHyena2, found: Survey) -> Plan:
    layers = resolve_layers(model, options.layers)
    longest, context = max(length for _, length in found.passages), model.config.context
    if longest > context:
        console.warn(
            f"{longest:,} bases in a row: the model was trained on {context:,}; beyond them it "
            "extrapolates"
        )
    if layers == ["embedding"]:
        console.warn("embedding is the table of letters: it knows nothing of what stands around")
    return Plan(
        survey=found,
        layers=layer_widths(model, layers),
        by_position=options.pooling == Pooling.NONE,
        by_feature=options.features is not None,
        about={
            "evo2cli": __version__,
            "model": options.model,
            "fingerprint": fingerprint(model.config, model.state_dict()),
            "dtype": _dtype(model),
            "layers": json.dumps(layers),
            "pooling": options.pooling,
            "strand": options.strand,
        },
    )


def _dtype(model: StripedHyena2) -> str:
    """What the model computes in, as --dtype would say it where it can."""
    if has_scales(model):
        return FP8
    found = model.embedding.weight.dtype
    return next((name for name, dtype in DTYPES.items() if dtype == found), str(found))


def _fill(
    options: EmbedOptions,
    model: StripedHyena2,
    store: Store,
    index: FeatureIndex | None,
    recall: Recall,
) -> None:
    """Embed what has not been embedded by an earlier run."""
    first = 0
    with console.progress("embed", store.plan.survey.num_bases, "bases") as bar:
        embedder = Embedder(
            model=model,
            layers=store.plan.layers,
            pooling=Pooling(options.pooling),
            strands=options.strands,
            progress=bar.advance,
        )
        for passage in read_passages(options):
            rows = rows_of(passage, index)
            if not rows:
                continue
            places = repr([row.spans for row in rows]).encode()
            key = f"{passage.name} {zlib.crc32(passage.bases):08x} {zlib.crc32(places):08x}"
            recall(key, partial(_embed_passage, embedder, store, passage, rows, first))
            first += len(rows)


def _embed_passage(
    embedder: Embedder, store: Store, passage: Passage, rows: list[Row], first: int
) -> None:
    """Put the vectors of a passage into the store, pooled ones as rows from `first` on."""
    keys = {layer: store.plan.key(layer, passage.name) for layer in store.plan.layers}
    arrays = {layer: store.arrays[key] for layer, key in keys.items()}
    if store.plan.by_position:
        embedder.keep(passage.name, passage.bases, arrays)
    else:
        spans = [row.spans for row in rows]
        vectors = embedder.pool(passage.name, passage.bases, spans)
        for layer, vectors_RD in vectors.items():
            arrays[layer].write(first, vectors_RD.float().numpy())


def _result(options: EmbedOptions, plan: Plan, probed: dict[str, Any] | None) -> dict[str, Any]:
    found = plan.survey
    num_vectors = found.num_bases if plan.by_position else len(found.rows)
    return {
        **plan.about,
        "layers": dict(plan.layers),
        "sequences": len(found.passages),
        "bases": found.num_bases,
        "vectors": num_vectors,
        "output": options.output and str(options.output),
        "probe": probed,
    }
