"""`evo2 serve`: one model for many clients, over HTTP.

`engine` runs the model, in one thread, for all requests at once. `app` is the web application:
`guard` decides who may ask how much; `nim`, `openai`, `native` and `generate` answer programs,
`mcp` answers agents, also over `stdio`, and `page` is for people.
"""
