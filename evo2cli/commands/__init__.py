"""One file per subcommand: a typer signature and a few lines. Nothing here imports torch."""
