"""The forms of data that are understood, one module each; `client.data.ingest` tells them apart.

Each reads a file, a folder or a database and returns frames, the columns of which `client.data.ingest.RawData` lists.
"""
