"""Graphs out: each backend turns a graph into what an artifact holds (`base`), imported when it is asked for."""
