"""`evo2 serve`: a model behind an HTTP address.

`engine` runs the model, in one thread, for all requests at once. `app` is the web application:
`guard` decides who may ask how much, and `nim`, `openai` and `own` answer in three dialects.
"""
