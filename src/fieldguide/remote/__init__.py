"""Models behind a server: Ollama, and whatever speaks OpenAI's protocol; see `model.open_remote`."""
