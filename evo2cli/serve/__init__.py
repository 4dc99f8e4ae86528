"""`evo2 serve`: one model for many clients, over HTTP.

`engine` runs the model for all requests in one thread, with continuous batching. `app` is the web
application: `guard` checks keys, hosts and sizes; `nim`, `openai`, `native` and `generate` are the
APIs for programs, `mcp` the tools for agents, also over `stdio`, and `page` the page for people.
"""
