"""`evo2 report`: scored variants as one HTML file.

`collect` reads the variants once and keeps what the file shows, `saturation` the heat map, and
`page` makes the file of it and of `evo2cli.pages`.
"""
