"""Collections: thousands of documents, each read into a store of its own; searched, and answered from.

    documents.jsonl                     one line a document: source, hash, tokens, store, or why it could not be read
    stores/<name>/                      a saved context, as `sharedllm encode` writes it
    sketches/<name>.safetensors         a few node representations, by which a question finds the document

`read_collection` makes one, with this process or with the workers of a Ray cluster; `Collection` asks it.
"""

RECORDS, STORES, SKETCHES = "documents.jsonl", "stores", "sketches"
"""Their names; here, since those who take text out of files need no tensors."""
