"""The first hour on a TPU or GPU: speed, numerics and a profile, compared with PyTorch on a GPU.

    python -m benchmarks.accelerator --out=FOLDER [--cells=ceilings,train_bf16] [--scale=full]

Each cell is measured separately and takes at most eight minutes, so a machine that limits the duration of commands can
run one at a time. The results of all cells so far are in `FOLDER/results.json` and, as a page of text, in
`FOLDER/page.md`. Cells are described in `cells.py`. Requires jax, flax, optax and NumPy. PyTorch and transformers are
required for the comparisons; cells that need a missing package are skipped.
"""
