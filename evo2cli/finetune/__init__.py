"""`evo2 finetune`: from a table of labelled DNA to a model that predicts the labels."""
