"""Generation: sessions that write and draw against a KV cache."""
