"""`evo2 serve`."""

from evo2cli.options import takes
from evo2cli.serve.options import ServeOptions


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve one model to many clients over HTTP: generation, scores and embeddings.

    It has the API of NVIDIA's Evo 2 NIM, that of OpenAI (completions, embeddings), and paths of its
    own for variants, saturation and tracks; /docs lists them all. Agents find tools at /mcp, or
    over stdin and stdout. Needs the extra "serve".
    """
    from evo2cli.serve.run import serve as run

    run(options)
