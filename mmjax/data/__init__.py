"""From files to packed rows: sources, tokenisation, images, packing, loading."""
