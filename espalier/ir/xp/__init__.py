"""The primitives that operator references are written against, in two forms: `numpy` and `torch`.

Both are modules with the same functions. Arrays support Python's arithmetic, comparison and indexing operators; what
goes beyond is a function here, named and meant as in the Python array API standard unless its docstring says more.
Elements (`espalier.ir.elements`), not dtypes, say what numbers are.
"""
