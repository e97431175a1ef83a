"""The libraries whose architectures are checked, a module each.

Each module has `REQUIREMENTS`, the pinned packages of its environment, and `architectures()`, which yields what is
checked.  It imports its library only there, since the requirements are read without it.
"""
