"""Numbers for the text: what a cell computes here, ``{glue:text}`` prints in a paragraph.

The record is the one that the book builder's own ``glue`` leaves in a notebook; writing it here
keeps the builder out of the packages that a notebook needs to run.
"""

from IPython.display import display


def glue(**texts: str) -> None:
    """Store formatted numbers under their names, e.g. ``glue(r2_wiener=f"{r2:.2f}")``."""
    for name, text in texts.items():
        prefix = "application/papermill.record/"
        display(
            # Quoted, as a string's own representation: the builder evaluates what it finds, and
            # would print 1,500 as a pair and 0.80 as 0.8.
            {prefix + "text/plain": repr(str(text))},
            metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
            raw=True,
        )
