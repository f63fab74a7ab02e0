"""What uses a finished model: captions beside pictures, a server, exports, clusters. Mostly optional
installs.

Each app stands alone: none imports another. They import `inference`, `runs`, `models`, `data` and
`system`; nothing below imports them. TensorFlow is loaded inside functions.
"""
