"""From files to packed rows: sources, tokenisation, pictures, packing, loading."""
