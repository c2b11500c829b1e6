"""From text to batches: the tokenizer, shards of documents, packing into rows, loading."""
