"""The stages, one file each; `pipeline.py` lists them in running order.

They are joined by the records that they read and write, and never import each other.
"""
