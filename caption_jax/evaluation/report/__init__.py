"""Reports of an evaluation: on the terminal, as pictures, and as one HTML file."""
