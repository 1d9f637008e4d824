"""Trajectories of environments: what they are, how they are kept.

`trajectory` is the episode. `encoding` makes bytes of it; `dataset` keeps, filters and splits many, and `statistics`
describes them. `files` writes and reads them, whole or not at all, with `json_files` and `parquet_files` for the
formats, `rows` for the checksums, `increments` for files of other programs, and `damage` for what is broken.
"""
