"""The families of published models that mmjax reads and writes: one file each, found by listing this folder."""
