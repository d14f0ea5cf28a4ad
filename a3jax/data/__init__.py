"""Sources -> tokens -> packed windows."""
