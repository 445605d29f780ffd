"""Serving: the engine behind OpenAI's HTTP interface. Importing `serve.api` needs the extra `serve`."""
