"""`evo2 launch`."""

from evo2cli.launch.options import LaunchOptions
from evo2cli.options import takes


@takes(LaunchOptions)
def launch(options: LaunchOptions) -> None:
    """Train on many GPUs, on this machine or under Slurm.

    To resume a stopped run, run the same command again.
    """
    from evo2cli.launch.run import launch_recipe

    launch_recipe(options)
