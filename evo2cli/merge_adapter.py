"""`evo2 merge-adapter`: merge an adapter into its base, as one checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from evo2cli import __version__, console
from evo2cli.convert.options import Target
from evo2cli.convert.run import write_checkpoint
from evo2cli.errors import counted
from evo2cli.models import open_adapter
from stripedhyena2.checkpoint import read_checkpoint


def merge_adapter(
    run: Path, output: Path, *, to: Target | str = Target.AUTO, model: str | None = None
) -> dict[str, Any]:
    """Merge an adapter into its base and write the result.

    Weights keep the dtypes of the base.

    Args:
        run: Folder of a run of `evo2 finetune`, or of an adapter.
        output: Destination, as for `convert_checkpoint`.
        to: Layout to write, as for `convert_checkpoint`.
        model: The base; None for the one recorded in the adapter.

    Returns:
        The result of `write_checkpoint`, with base and adapter.

    Raises:
        UserError: There is no adapter, or the output cannot be written.
        CheckpointError: The base is missing, or is not the one of the adapter.
    """
    adapter = open_adapter(run)
    base = model or adapter.base
    stored = read_checkpoint(base)
    adapter.check_base(stored.config, stored.tensors, str(run))
    provenance = {
        "merged_by": f"evo2cli {__version__}",
        "base": base,
        "base_fingerprint": adapter.base_fingerprint,
        "adapter": run.name,
        "before": stored.provenance,
    }
    merged = replace(stored, tensors=adapter.merge_into(stored.tensors), provenance=provenance)
    console.say(f"{run}: adapters on {counted(len(adapter.tensors) // 2, 'module')} of {base}")
    return {"base": base, "adapter": str(run), **write_checkpoint(merged, output, to=to)}
