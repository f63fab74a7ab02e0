"""The web page and the HTTP API over one or more runs.

In: run folders, requests. Out: captions as JSON and a page; with `--corrections`, pictures with the captions
that people wrote. Listens on 127.0.0.1 unless told otherwise. Imports `inference`, `runs`, `data` and
`system`; FastAPI is an optional install, TensorFlow is loaded inside functions.

    server     the command: sockets, connections, start and end
    guard      who may ask, how large, how slow            (ASGI, before everything else)
    api        /api/caption and what belongs to it         ollama: the same in Ollama's shape
    requests   what clients write → pictures and options   schemas: the fields, their limits, the answers
    service    models behind one line, batched             batcher, served_models
    page       the page, from templates/ and assets/       corrections: what people wrote, as a data set
"""
