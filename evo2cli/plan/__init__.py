"""Memory, time and cost of a recipe; the work behind `evo2 plan`."""
