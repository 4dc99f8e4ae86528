"""`evo2 serve`: a model behind an HTTP address.

`engine` runs the model, in one thread, for all requests at once. `app` is the web application:
`guard` decides who may ask how much; `nim`, `openai`, `own` and `generate` answer programs, and
`page` is for people.
"""
