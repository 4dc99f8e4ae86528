"""`evo2 predict`: predictions of a fine-tuned model for sequences, regions and variants."""
