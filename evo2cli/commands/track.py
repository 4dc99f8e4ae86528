"""`evo2 track`."""

from evo2cli.options import takes
from evo2cli.track.options import TrackOptions


@takes(TrackOptions)
def track(options: TrackOptions) -> None:
    """Write a value for every base of a FASTA: how well the bases before it predict it.

    The output is a bedGraph, or a bigWig for a genome browser. With --regions or --bed, the FASTA
    is a genome, and the bases before each region are read as context.

    To resume a run with --output that was killed, give the same command again. Without regions and
    --window, the record in which it was killed is read again from its start.
    """
    from evo2cli.track.run import write_track

    write_track(options)
