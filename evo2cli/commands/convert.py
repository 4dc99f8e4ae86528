"""`evo2 convert`."""

from evo2cli import console
from evo2cli.convert.options import ConvertOptions
from evo2cli.options import takes


@takes(ConvertOptions)
def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint to the native, the released, Hugging Face's or Savanna's layout.

    The layout of the source is detected. Stored values and dtypes are kept bit for bit.
    """
    from evo2cli.convert.run import convert_checkpoint

    summary = convert_checkpoint(
        options.source,
        options.destination,
        to=options.to,
        config=options.config,
        verified=options.verify,
    )
    if options.json:
        console.write_json(summary)
        return
    rate = summary["bytes"] / 1e6 / max(summary["seconds"], 1e-3)
    console.say(
        f"{summary['destination']}: {summary['layout']} layout, {summary['tensors']} tensors, "
        f"{summary['parameters']:,} parameters, {summary['bytes']:,} bytes, {rate:,.0f} MB/s, "
        f"from the {summary['source_layout']} layout"
    )
    if found := summary["verification"]:
        console.say(
            f"verified: loss {found['source_loss']:.4f} before and {found['target_loss']:.4f} "
            f"after, in nats a base; logits differ by at most {found['largest_difference']:.1e}"
        )
