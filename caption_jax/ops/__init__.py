"""Operations of the models, losses and beam search, as pure functions of arrays.

Each file starts with a plain reference, which defines the operation in a few lines. It is followed by an optimised
implementation with the same arguments and results, and the speedup that justifies it. `implementations` defines the two
sets of operations, `FAST` and `REFERENCE`. A model uses `FAST` unless `config.model.ops` is "reference".

The platform is selected at lowering (`jax.lax.platform_dependent`), not at tracing, so a TPU program compiled on a CPU
contains the TPU implementation. Speedups compare CPU time with that of the reference, on two cores, and include the
gradient where training needs it. They are measured by `python -m benchmarks.ops` (docs/performance.md).

All platform-dependent code of `caption_jax/` (tests/test_architecture.py checks that this list is complete):

    ops/attend.py               on a CPU, small matrix products of decoding as multiplications and sums
    ops/cross_entropy.py        on a CPU, the logits are computed a few rows at a time
    ops/dense.py                on a CPU, the kernel gradient transposes the smaller factor
    ops/depthwise.py            on a CPU, sums of shifted copies of the image
    ops/norm_activation.py      on a CPU, the gradient before the activation is materialised
    ops/pointwise.py            on a CPU, gradients of flattened arrays
    ops/resample.py             gathers on a CPU, two matrix products elsewhere
    runs/description.py         `config.dtype` "auto": float32 on a CPU, bfloat16 elsewhere; on a CPU, XLA compiles the
                                initialiser without optimisation
    runtime/cached_program.py   the platform is part of the key of a cached program
    runtime/process.py          on Linux, a restart with huge pages for malloc; 512-bit vectors for XLA:CPU
    training/batch_placer.py    `config.train.packing` "auto": on a CPU, captions are packed into rows without padding
    training/program.py         on a single CPU device, the update is a cached program

Optimised for CPUs, but the same on all platforms: `ops/caption_attention.py`, `ops/dropout.py`, `ops/materialise.py`,
`ops/segments.py` and `ops/top_k.py`, the sums of `augment.py` and the matrix products of `retrieval/search.py`.
"""
