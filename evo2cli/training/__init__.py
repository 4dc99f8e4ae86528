"""The training loop and its parts: recipe, loss, optimizer, schedule, metrics."""
