"""`evo2 embed`."""

from evo2cli import console
from evo2cli.embed.options import EmbedOptions
from evo2cli.options import takes


@takes(EmbedOptions)
def embed(options: EmbedOptions) -> None:
    """Write embeddings of DNA: outputs of a model's layers, pooled over sequences or features.

    Sequences are read one at a time and may be of any length. With --probe, a linear model is
    fitted to the vectors of each layer, to find the layer that predicts the labels best.
    """
    from evo2cli.embed.probe import probe_page
    from evo2cli.embed.run import embed as run

    result = run(options)
    layers = [f"{name} ({width:,} channels)" for name, width in result["layers"].items()]
    shown = ", ".join(layers) if len(layers) <= 3 else f"each of {len(layers)} layers"
    count = result["vectors"]
    console.say(f"{count:,} vector{'' if count == 1 else 's'} from {shown}")
    if options.json:
        console.write_json(result)
    elif result["probe"]:
        console.write_page(probe_page(result["probe"]))
