"""The web page and the HTTP API over one or more runs.

In: run folders, requests. Out: captions as JSON and a page. Listens on 127.0.0.1 unless told otherwise.
"""
