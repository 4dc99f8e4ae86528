"""`evo2 generate`."""

from evo2cli.generate.options import GenerateOptions
from evo2cli.options import takes


@takes(GenerateOptions)
def generate(options: GenerateOptions) -> None:
    """Generate DNA after each prompt.

    Writes FASTA with the mean log-probability per base (in nats) in each header, or JSON lines.
    """
    from evo2cli.generate.run import generate as run

    run(options)
