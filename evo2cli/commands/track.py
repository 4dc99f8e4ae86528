"""`evo2 track`."""

from evo2cli.options import takes
from evo2cli.track.options import TrackOptions


@takes(TrackOptions)
def track(options: TrackOptions) -> None:
    """Write a value for every base of a FASTA, given all bases before it.

    The output is bedGraph, or bigWig for a genome browser. With --regions or --bed the FASTA is a
    genome, and each region is read after the bases before it.
    """
    from evo2cli.track.run import write_track

    write_track(options)
