"""`evo2 report`: a self-contained HTML report of scored variants.

`collect` reads the variants in one pass and aggregates them, `saturation` detects saturation
mutagenesis and prepares its heat map, and `page` fills the template in `evo2cli.pages`.
"""
