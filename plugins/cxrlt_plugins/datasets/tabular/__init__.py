"""Parts of the ``csv`` source: reading a table as text, telling its columns apart, finding the image files."""
