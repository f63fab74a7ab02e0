"""Captions kept beside the pictures of a folder: text files, XMP, CSV, JSON lines, and the journal that
remembers.

In: a captioner, a folder of pictures. Out: caption files, whole or absent, and a summary of what was
done. Never replaces what a person wrote.
"""
