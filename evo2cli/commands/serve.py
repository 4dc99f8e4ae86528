"""`evo2 serve`."""

from evo2cli.options import takes
from evo2cli.serve.options import ServeOptions


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Answer requests over HTTP: generate, score, embed; for one model and many clients.

    Paths and fields are those of NVIDIA's Evo 2 NIM, those of OpenAI (completions, embeddings), and
    our own for variants, saturation and tracks; /docs lists them. Agents find tools at /mcp, or
    over stdin and stdout. Needs the extra "serve".
    """
    from evo2cli.serve.run import serve as run

    run(options)
