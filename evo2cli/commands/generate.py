"""`evo2 generate`."""

from evo2cli.generate.options import GenerateOptions
from evo2cli.options import takes


@takes(GenerateOptions)
def generate(options: GenerateOptions) -> None:
    """Generate DNA after each prompt; FASTA with the mean log-probability (nats) in the header."""
    from evo2cli.generate.run import generate as run

    run(options)
