"""Start training on many GPUs; the work behind `evo2 launch`."""
