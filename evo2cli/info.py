"""Describe a model, a recipe, a token set, a FASTA file or a variant file."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.finetune.folder import FACTS, find_tuned, read_description
from evo2cli.genome.builds import build_of
from evo2cli.genome.fasta import read_records
from evo2cli.genome.normalization import Indels
from evo2cli.genome.variant_table import is_table, read_table
from evo2cli.genome.vcf import FIRST_COLUMNS, Kind, is_bases, is_variants, kind_of, read_vcf
from evo2cli.training.recipe_file import find_recipe, read_recipe, read_shape
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint import Checkpoint, read_checkpoint
from stripedhyena2.checkpoint.precision import is_released, precision_of, precision_warning
from stripedhyena2.checkpoint.published import LICENSE, PUBLISHED, published_config, split_name
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.checkpoint.sources import looks_like_weights
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import read_config
from stripedhyena2.costs import count_parameters, state_bytes, weight_bytes
from stripedhyena2.mixer import MIXERS
from stripedhyena2.values import read_values

LENGTHS = (8_192, 131_072, 1_048_576)
_KINDS = {
    Kind.SNV: "snvs",
    Kind.MNV: "mnvs",
    Kind.INSERTION: "insertions",
    Kind.DELETION: "deletions",
}
_NOT_BASES = "not_spelled_in_bases"


def describe(subject: str, *, config: Path | None = None) -> dict[str, Any]:
    """Describe a file, folder or model name, as JSON values.

    A published model is described from its shape alone, without downloading it.

    Args:
        subject: Folder, file or name of a model; the folder of a fine-tuning run; a recipe or shape
            (.toml); the folder of a token set; a FASTA file; a VCF, BCF or table of variants.
        config: Shape of a released model file.

    Raises:
        UserError: A recipe, token set, sequence or variant file is damaged.
        InputError: It is none of these, or a model that cannot be read.
    """
    path = Path(subject)
    if (path / "manifest.json").is_file():
        return _tokens(path)
    if any((folder / FACTS).is_file() for folder in (path, path / "final", path / "best")):
        description = read_description(find_tuned(path))
        return {"kind": "fine-tuned model", "name": subject, **description.facts}
    if path.suffix == ".toml":
        return _recipe_or_shape(path)
    if path.is_file() and not looks_like_weights(path):
        return _variants(path) if _has_variants(path) else _fasta(path)
    name, _ = split_name(subject)
    if name in PUBLISHED and not path.exists():
        return {
            "kind": "published model",
            "name": subject,
            "hub": PUBLISHED[name].repository,
            "license": LICENSE,
            **_model(published_config(name)),
            "needs": PUBLISHED[name].precision,
        }
    checkpoint = read_checkpoint(subject, config=config)
    precision = _precision(checkpoint, subject)
    stored = Tensors.of(checkpoint.tensors).like.values()
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored})
    return {
        "kind": "model",
        "name": subject,
        **_model(checkpoint.config),
        "stored_dtypes": dtypes,
        **precision,
        "provenance": checkpoint.provenance,
    }


def stripe_colours() -> dict[str, str]:
    """The colour of each letter of `stripes`, by the name that rich uses."""
    return {letter: mixer.colour for letter, mixer in MIXERS.items()}


def _has_variants(path: Path) -> bool:
    return is_table(path) or is_variants(path)


def _precision(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The FP8 scales of a checkpoint, and the precision it needs."""
    scales = trained_scales(checkpoint.extra_state, checkpoint.config, name)
    facts: dict[str, Any] = {
        "fp8_records": len(checkpoint.extra_state),
        "fp8_projections": len(scales),
    }
    if is_released(checkpoint):
        facts["needs"] = precision_of(checkpoint)
        if not scales and (
            warning := precision_warning(checkpoint, name, torch.device("cpu"), float8=False)
        ):
            facts["warning"] = warning
    return facts


def _model(config: ModelConfig) -> dict[str, Any]:
    """Shape, parameter count, and memory of weights and of the decoding state by length."""
    return {
        **asdict(config),
        "depth": config.depth,
        "parameters": count_parameters(config),
        "weights_bytes_bf16": weight_bytes(config),
        "weights_bytes_fp8": weight_bytes(config, float8=True),
        "state_bytes_bf16": {str(length): state_bytes(config, length) for length in LENGTHS},
    }


def _recipe_or_shape(path: Path) -> dict[str, Any]:
    """Describe a TOML file: a shape if it has `stripes`, otherwise a recipe."""
    file = find_recipe(path)
    if "stripes" in read_values(file, UserError):  # a recipe has them in its table [shape]
        return {"kind": "model shape", "name": str(path), **_model(read_config(file))}
    recipe = read_recipe(file)
    values = recipe.model_dump(mode="json")
    tokens = recipe.optimizer.steps * recipe.batch.sequences * recipe.batch.length
    shape = _model(read_shape(recipe))
    return {"kind": "recipe", "name": str(path), **values, "trained_tokens": tokens, "shape": shape}


def _tokens(path: Path) -> dict[str, Any]:
    manifest = TokenSet.open(path).manifest
    return {"kind": "tokens", "name": str(path), **manifest}


def _variants(path: Path) -> dict[str, Any]:
    """Count the variants of a VCF, BCF or table by kind; infer the genome build from the header."""
    facts: dict[str, Any] = {"kind": "table of variants", "name": str(path)}
    if is_table(path):
        records = read_table(path).records
    else:
        vcf = read_vcf(path, scored=True)
        header, records = vcf.header, vcf.records
        facts["kind"] = "VCF"
        facts["samples"] = max(header.num_columns - FIRST_COLUMNS - 1, 0)
        facts["build"] = (
            build_of(header.contig_lengths()) or "unknown: no ##contig lengths of a known build"
        )
        for key in ("evo2Command", "evo2Model"):
            if value := header.value(key):
                facts[key] = value
    contigs, kinds, indels, count = set(), Counter[str](), Indels(), 0
    for record in records:
        count += 1
        contigs.add(record.contig)
        kinds.update(_kind(record.reference, alternate) for alternate in record.alternates)
        indels.count(record)
    return {
        **facts,
        "records": count,
        "alleles": kinds.total(),
        "contigs": len(contigs - {""}),  # of blank lines
        **{kind: kinds[kind] for kind in (*_KINDS.values(), _NOT_BASES)},
        "not_left_aligned": indels.unnormalized,
    }


def _kind(reference: bytes, alternate: bytes) -> str:
    if not (is_bases(reference) and is_bases(alternate)):
        return _NOT_BASES
    return _KINDS[kind_of(reference, alternate)]


def _fasta(path: Path) -> dict[str, Any]:
    records, bases = 0, 0
    for record in read_records(path):
        records += 1
        bases += len(record.sequence)
    return {"kind": "FASTA", "name": str(path), "records": records, "bases": bases}
